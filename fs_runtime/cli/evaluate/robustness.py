"""``fs-serve evaluate robustness``: measures each defence under attacks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fs_runtime.cli.options import (
    DeviceOption,
    ModelOption,
    PsmOption,
    check_plots,
    checkpoint_of,
    choices,
    positive,
    positive_numbers,
    probability,
    robust_encoder_folder,
)
from fs_runtime.options import NORMS, radius_for

_ROBUST = "robust_encoder"  # a setting that affects only the rows with one, so they can be added later


def robustness(
    output: Annotated[Path, typer.Argument(help="Folder for tables and plots; a finished cell is kept.")],
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    robust_encoder: Annotated[
        str, typer.Option(help="A folder of `train robust-encoder`, 'none', or 'auto' for one that ships.")
    ] = "auto",
    images: Annotated[int, typer.Option(min=1, help="Images in each cell.")] = 200,
    kinds: Annotated[str, typer.Option(help="Kinds of question, separated by commas; all if empty.")] = "",
    sigma: Annotated[float, typer.Option(help="Noise level in pixels of [0, 1].")] = 0.25,
    samples: Annotated[str, typer.Option(help="Every n, separated by commas; 1,2,4,8,16,32 for the ablation.")] = "32",
    attacks: Annotated[str | None, typer.Option(help="Separated by commas; by default all.")] = None,
    norms: Annotated[str, typer.Option(help="linf, l2 or both.")] = "linf,l2",
    sizes: Annotated[str, typer.Option(help="ε in 255ths, separated by commas.")] = "2,4,8,16",
    rows: Annotated[str, typer.Option(help="Rows to measure beside 'none', separated by commas; all if empty.")] = "",
    adaptive: Annotated[bool, typer.Option(help="Attack each defended row itself, too.")] = True,
    steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps; by default each attack's own.")] = None,
    adaptive_images: Annotated[
        int | None, typer.Option(min=1, help="Images in each adaptive cell, the first of all; they take long.")
    ] = None,
    adaptive_steps: Annotated[int | None, typer.Option(min=1, help="Gradient steps of adaptive attacks.")] = None,
    restarts: Annotated[int, typer.Option(min=1, help="Random starts of each attack.")] = 1,
    draws: Annotated[int, typer.Option(min=1, help="Fresh noisy copies behind each adaptive gradient.")] = 8,
    radius: Annotated[float | None, typer.Option(help="l2 radius of the certified similarity; half of sigma.")] = None,
    confidence: Annotated[float, typer.Option(help="Probability that a certificate holds.")] = 0.999,
    seed: Annotated[int, typer.Option(min=0, help="Of pictures, targets, attacks and noise.")] = 0,
    plots: Annotated[bool, typer.Option(help="Draw plots; needs the extra 'plots'.")] = True,
    device: DeviceOption = "auto",
) -> None:
    """Measure accuracy and attack success of the reference model under each defence, attacks fixed and adaptive."""
    from rich.console import Console

    from fs_runtime.attacks import ATTACKS
    from fs_runtime.encoders.robust_tower import load_robust_encoder
    from fs_runtime.evaluation.robustness.answers import Answerer
    from fs_runtime.evaluation.robustness.cells import CellFile
    from fs_runtime.evaluation.robustness.defences import defences_for
    from fs_runtime.evaluation.robustness.items import KINDS, evaluation_items
    from fs_runtime.evaluation.robustness.measure import EvaluationPlan, evaluate_robustness
    from fs_runtime.evaluation.robustness.plots import write_plots
    from fs_runtime.evaluation.robustness.report import as_csv, markdown
    from fs_runtime.loading.engine import load_smoother, resolve_device
    from fs_runtime.system.files import TrainingError, write_file
    from fs_runtime.system.progress_bar import ProgressBar

    sigma = positive("sigma", sigma)  # the row 'none' never has noise
    plan = EvaluationPlan(
        attacks=tuple(ATTACKS) if attacks is None else choices("attacks", attacks, tuple(ATTACKS)),
        norms=choices("norms", norms, NORMS),
        sizes=positive_numbers("sizes", sizes, float),
        samples=positive_numbers("samples", samples, int),
        radius=positive("radius", radius_for(sigma, radius)),
        steps=steps,
        adaptive_steps=adaptive_steps,
        adaptive_images=adaptive_images,
        restarts=restarts,
        draws=draws,
        adaptive=adaptive,
        confidence=probability("confidence", confidence),
        seed=seed,
    )
    asked = choices("kinds", kinds, KINDS) if kinds else KINDS
    console = Console(stderr=True)
    if plots:
        check_plots()
    folder = Path(checkpoint_of(model))
    device = resolve_device(device)
    smoother = load_smoother(str(folder), psm=psm, device=device, dtype="float32")
    encoder = smoother.encoder
    trained = robust_encoder_folder(robust_encoder, model)
    robust = load_robust_encoder(trained, encoder) if trained else None
    defences, left_out = defences_for(encoder, sigma, smoother.purifier, smoother.mapper, robust)
    wanted = [name.strip() for name in rows.split(",")] if rows else list(left_out)
    for name in (name for name in left_out if name in wanted):
        console.print(f"row {name!r} is left out: {left_out[name]}", style="yellow")
    if rows:
        chosen = choices("rows", rows, tuple(defence.name for defence in defences))
        defences = [d for d in defences if d is defences[0] or d.name in chosen]
    answerer = Answerer(folder, device)
    try:
        items = evaluation_items(images, defences[0], answerer, seed, asked)
        common = dataclasses.asdict(plan)
        for name in ("attacks", "norms", "sizes", "samples", "adaptive"):  # a later run may add values of these
            del common[name]
        parts = {"encoder": encoder, "purifier": smoother.purifier, "mapper": smoother.mapper, _ROBUST: robust}
        fingerprints = {name: part.fingerprint if part else None for name, part in parts.items()}
        fingerprints["language_model"] = answerer.fingerprint
        settings = common | {"images": images, "kinds": asked, "sigma": sigma} | fingerprints
        file = CellFile(output / "cells.jsonl", settings, row_specific=(_ROBUST,))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    keys = [key for defence in defences for key in plan.cells(defence)]
    with ProgressBar(console=console) as progress:
        task = progress.add_task("measuring", total=len(keys))

        def report(text: str) -> None:
            progress.update(task, completed=sum(key in file.cells for key in keys), description=text)

        try:
            evaluate_robustness(plan, defences, items, answerer, file, report=report)
            report("measured")
            cells = list(file.cells.values())
            write_file(output / "robustness.md", markdown(cells).encode())
            write_file(output / "robustness.csv", as_csv(cells).encode())
        except TrainingError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from None
    if plots:
        write_plots(cells, output)
    typer.echo(f"Tables of {len(cells)} cells are in {output}.")
