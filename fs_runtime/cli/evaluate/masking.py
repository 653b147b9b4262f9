"""``fs-serve evaluate masking``: checks that attacks do not fail only because gradients are masked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fs_runtime.cli.options import (
    LARGEST_SEED,
    DeviceOption,
    ModelOption,
    PsmOption,
    check_folder,
    checkpoint_of,
    choices,
    positive,
    robust_encoder_folder,
)
from fs_runtime.options import Norm


def evaluate_masking(
    output: Annotated[Path | None, typer.Option(help="File to write the tables to as well, as Markdown.")] = None,
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    robust_encoder: Annotated[
        str, typer.Option(help="A folder of `train robust-encoder`, 'none', or 'auto' for one that ships.")
    ] = "auto",
    row: Annotated[str, typer.Option(help="The defence, as `evaluate robustness` calls it.")] = "FS + PSM",
    attacks: Annotated[str, typer.Option(help="Separated by commas.")] = "apgd-ce,apgd-ce-targeted",
    norm: Annotated[Norm, typer.Option(help="Of the attacks.")] = "linf",
    size: Annotated[float, typer.Option(min=0.01, help="ε in 255ths.")] = 8.0,
    images: Annotated[int, typer.Option(min=2, help="Images to attack.")] = 20,
    sigma: Annotated[float, typer.Option(min=0.001, help="Noise level in pixels of [0, 1].")] = 0.25,
    steps: Annotated[int, typer.Option(min=4, help="Gradient steps of the strong attack.")] = 25,
    draws: Annotated[int, typer.Option(min=2, help="Fresh noisy copies behind each gradient of the strong one.")] = 8,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of pictures, targets, attacks and noise.")] = 0,
    device: DeviceOption = "auto",
) -> None:
    """Check that a stronger attack on a defence is not less successful.

    Attacks are made stronger by more steps, more draws, a larger ball, and gradients of the defence itself instead of
    the undefended model. The exit status is 1 if one of them helped the defence: then the attacks' results say nothing
    about it.
    """
    from rich.console import Console

    from fs_runtime.attacks import ATTACKS, FeaturePipeline, check_gradient_masking
    from fs_runtime.encoders.robust_tower import load_robust_encoder
    from fs_runtime.evaluation.robustness.answers import Answerer
    from fs_runtime.evaluation.robustness.attack_inputs import AttackInputs
    from fs_runtime.evaluation.robustness.defences import defences_for
    from fs_runtime.evaluation.robustness.items import evaluation_items
    from fs_runtime.loading.engine import load_smoother, resolve_device

    names = choices("attacks", attacks, tuple(ATTACKS))
    check_folder("output", output)
    size, sigma = positive("size", size), positive("sigma", sigma)
    folder = Path(checkpoint_of(model))
    device = resolve_device(device)
    smoother = load_smoother(str(folder), psm=psm, device=device, dtype="float32")
    trained = robust_encoder_folder(robust_encoder, model)
    robust = load_robust_encoder(trained, smoother.encoder) if trained else None
    rows, left_out = defences_for(smoother.encoder, sigma, smoother.purifier, smoother.mapper, robust)
    if row in left_out:
        raise typer.BadParameter(f"row {row!r} cannot be made: {left_out[row]}")
    choices("row", row, tuple(defence.name for defence in rows if defence.sigma > 0))
    undefended, defended = rows[0], next(defence for defence in rows if defence.name == row)
    answerer = Answerer(folder, device)
    try:
        items = evaluation_items(images, undefended, answerer, seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    console, reports = Console(stderr=True), []
    for name in names:
        console.print(f"{name}: five attacks on {len(items)} images", markup=False)
        attack = dataclasses.replace(ATTACKS[name](), steps=steps)
        inputs = AttackInputs.of(items, attack, norm, size, smoother.encoder, answerer)
        strong, plain = (
            FeaturePipeline(defence.smoother, defence.sigma, inputs.grid, draws=draws, seed=seed)
            for defence in (defended, undefended)
        )
        report = check_gradient_masking(
            attack,
            strong,
            plain,
            inputs.images,
            inputs.threat,
            targets=inputs.targets,
            answers=inputs.answers,
            seed=seed,
        )
        reports.append(report)
        typer.echo(report.markdown() + "\n")
    if output is not None:
        output.write_text("\n\n".join(report.markdown() for report in reports) + "\n", encoding="utf-8")
    if not all(report.passed for report in reports):
        raise typer.Exit(1)
