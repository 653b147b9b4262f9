"""``fs-serve train psm``: trains a purifier and a mapper for one encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs_runtime.cli.train.run import BatchOption, CheckpointOption, ImagesOption, PrecisionOption, WorkersOption

if TYPE_CHECKING:
    from fs_runtime.psm.network import PsmNetwork
    from fs_runtime.training.psm import PsmSettings


def train(
    images: ImagesOption,
    output: Annotated[Path, typer.Option(help="Folder for the PSM; an interrupted run there resumes.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Checkpoint folder, hub id, or 'reference' for the one that ships.")
    ] = "reference",
    sigma: Annotated[
        str,
        typer.Option(help="Noise level to serve at; with more, separated by commas, all between the extremes train."),
    ] = "0.25",
    purifier: Annotated[
        str | None,
        typer.Option(
            help="'unet', the default, for a compact one from nothing, one that ships ('small') or a folder of "
            "`train purifier` to tune, a diffusers checkpoint (folder, hub id), or deepinv:NAME[:WEIGHTS]."
        ),
    ] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of a PSM for the same model to go on training, on more or other data.")
    ] = None,
    purifier_epochs: Annotated[
        float, typer.Option(min=0.0, help="Passes over the pictures, first stage; 0 skips it.")
    ] = 8.0,
    mapper_epochs: Annotated[
        float, typer.Option(min=0.0, help="Passes over the pictures, second stage; 0 skips it.")
    ] = 8.0,
    purifier_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate, first stage.")] = 1e-3,
    mapper_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate, second stage.")] = 2e-4,
    batch_size: BatchOption = 32,
    bare: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the mapper's pictures that skip the purifier.")
    ] = 0.25,
    mapper_width: Annotated[
        int | None, typer.Option(min=4, help="Channels inside the mapper, a multiple of 4; 128 by default.")
    ] = None,
    epsilon: Annotated[
        float,
        typer.Option(min=0.0, help="Train against attacks: radius of their l-infinity ball, in 255ths; 0 for none."),
    ] = 0.0,
    attack_steps: Annotated[int, typer.Option(min=0, help="PGD steps behind each training step with --epsilon.")] = 2,
    replays: Annotated[
        int,
        typer.Option(min=1, help="Times that a batch is trained on in a row, with one more attack step each time."),
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Fixes weights, order and noise.")] = 0,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:<index>; `accelerate launch` spreads over several.")
    ] = "auto",
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    checkpoint_every: CheckpointOption = 100,
) -> None:
    """Train purifier and mapper for a model's vision encoder; its language model is not loaded."""
    from fs_runtime.cli.train.run import mixed_precision, require_training_packages
    from fs_runtime.loading.engine import resolve_device
    from fs_runtime.system.files import TrainingError

    require_training_packages()
    from fs_runtime.training.loop import StageSettings
    from fs_runtime.training.psm import PsmSettings

    try:
        levels = tuple(float(level) for level in sigma.split(","))
    except ValueError:
        raise typer.BadParameter(
            "sigma is one level or several separated by commas, for example 0.25,0.1,0.35"
        ) from None
    if start_from is not None and (purifier is not None or mapper_width is not None):
        raise typer.BadParameter(
            "--start-from goes on with both networks of a PSM: leave --purifier and --mapper-width out, or give that "
            "folder to --purifier to keep its purifier alone"
        )
    device = resolve_device(device)
    try:
        settings = PsmSettings(
            sigma=levels,
            batch_size=batch_size,
            purifier=StageSettings(purifier_epochs, purifier_rate),
            mapper=StageSettings(mapper_epochs, mapper_rate),
            bare=bare,
            mapper_width=mapper_width or 128,
            epsilon=epsilon / 255,
            attack_steps=attack_steps,
            replays=replays,
            seed=seed,
            precision=mixed_precision(precision, device),
        )
        _run(settings, model, images, output, purifier or "unet", start_from, device, workers, checkpoint_every)
    except TrainingError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _run(
    settings: PsmSettings,
    model: str,
    images: str,
    output: Path,
    purifier: str,
    start_from: Path | None,
    device: str,
    workers: int | None,
    checkpoint_every: int,
) -> None:
    import torch

    from fs_runtime.cli.train.run import open_run
    from fs_runtime.psm.storage import load_psm
    from fs_runtime.training.psm import train_psm

    with open_run(model, images, output, device, settings.precision, workers) as run:
        start = load_psm(start_from, run.encoder, torch.float32) if start_from else None
        first = start.purifier if start else _purifier(purifier, settings.seed)
        parts = {"purifier": first, "mapper": start.mapper if start else None}
        started_from = {name: part.fingerprint for name, part in parts.items() if part and part.fingerprint}
        if started_from:
            run.facts["started_from"] = started_from
        card = train_psm(
            run.encoder,
            first,
            run.pictures,
            output,
            settings,
            mapper=start.mapper if start else None,
            facts=run.facts,
            accelerator=run.accelerator,
            workers=run.workers,
            checkpoint_every=checkpoint_every,
            report=run.report,
        )
    if run.accelerator.is_main_process:
        scores = ", ".join(f"{name} {score:.4f}" for name, score in card["held_out_score"].items())
        run.console.print(f"Gaussian robustness score at σ = {settings.sigma[0]:g}: {scores}")
        run.console.print(f"The PSM is in {output}; use it with --psm {output}", markup=False)


def _purifier(kind: str, seed: int) -> PsmNetwork:
    """A fresh U-Net, or a trained purifier or a denoiser of another project to be fine-tuned."""
    import torch

    from fs_runtime.psm.diffusion import DiffusionPurifier
    from fs_runtime.psm.pretrained import is_pretrained, pretrained_purifier
    from fs_runtime.psm.shipped import shipped_purifiers
    from fs_runtime.psm.storage import CARD, load_purifier
    from fs_runtime.psm.unet import UNetConfig, UNetPurifier

    if kind == "unet":
        torch.manual_seed(seed)
        return UNetPurifier(UNetConfig())
    if is_pretrained(kind):
        return pretrained_purifier(kind)
    folder = shipped_purifiers().get(kind, Path(kind))
    if (folder / CARD).is_file():
        return load_purifier(folder)[0]
    return DiffusionPurifier.from_pretrained(kind)
