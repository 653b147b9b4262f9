"""The ``fs-serve train psm`` command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fs_runtime.psm.data import Skipped
    from fs_runtime.psm.network import PsmNetwork
    from fs_runtime.psm.train import PsmSettings


def train(
    images: Annotated[
        str, typer.Option(help="Folder of pictures (with its subfolders), or 'reference' for drawn scenes and digits.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the PSM; a run that was cut short there goes on.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Checkpoint folder, hub id, or 'reference' for the one that ships.")
    ] = "reference",
    sigma: Annotated[
        str,
        typer.Option(help="Noise level to serve at; with more, separated by commas, all between the extremes train."),
    ] = "0.25",
    purifier: Annotated[
        str,
        typer.Option(
            help="'unet' for a compact one from nothing, one that ships ('small') or a folder of `train purifier` to "
            "tune, or a diffusers checkpoint (folder, hub id)."
        ),
    ] = "unet",
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
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures in a step, over all processes.")] = 32,
    bare: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the mapper's pictures that skip the purifier.")
    ] = 0.25,
    mapper_width: Annotated[int, typer.Option(min=4, help="Channels inside the mapper, a multiple of 4.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Fixes weights, order and noise.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; `accelerate launch` spreads over several.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32 or bfloat16 (mixed).")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read pictures.")] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
) -> None:
    """Train purifier and mapper for a model's vision encoder; its language model is not loaded."""
    from fs_runtime.psm.files import TrainingError

    try:
        import accelerate  # noqa: F401 (asked for here to say what to install)
        import tensorboardX  # noqa: F401
    except ModuleNotFoundError as error:
        typer.echo(f"{error.name} is missing: pip install 'fs-serve[train]'", err=True)
        raise typer.Exit(2) from None
    from fs_runtime.psm.train import PsmSettings, StageSettings

    if precision not in ("auto", "float32", "bfloat16"):
        raise typer.BadParameter("precision is auto, float32 or bfloat16")
    try:
        levels = tuple(float(level) for level in sigma.split(","))
    except ValueError:
        raise typer.BadParameter(
            "sigma is one level or several separated by commas, for example 0.25,0.1,0.35"
        ) from None
    from fs_runtime.loading import resolve_device

    device = resolve_device(device)
    mixed: Literal["no", "bf16"] = (
        "bf16" if precision == "bfloat16" or (precision, device) == ("auto", "cuda") else "no"
    )
    try:
        settings = PsmSettings(
            sigma=levels,
            batch_size=batch_size,
            purifier=StageSettings(purifier_epochs, purifier_rate),
            mapper=StageSettings(mapper_epochs, mapper_rate),
            bare=bare,
            mapper_width=mapper_width,
            seed=seed,
            precision=mixed,
        )
        _run(settings, model, images, output, purifier, start_from, device, workers, checkpoint_every)
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
    from accelerate import Accelerator
    from rich.console import Console

    from fs_runtime.cli import checkpoint_of
    from fs_runtime.encoders import load_encoder
    from fs_runtime.psm.data import find_pictures
    from fs_runtime.psm.report import RunReport
    from fs_runtime.psm.storage import load_psm
    from fs_runtime.psm.train import train_psm

    console = Console(stderr=True)
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=device == "cpu")
    pictures, skipped = find_pictures(images)
    if accelerator.is_main_process:
        console.print(f"{len(pictures)} pictures from {images}", markup=False)
        _list_skipped(skipped, output, console)
    dtype = "bfloat16" if settings.precision == "bf16" else "float32"
    encoder = load_encoder(checkpoint_of(model), device=str(accelerator.device), dtype=dtype)
    start = load_psm(start_from, encoder) if start_from else None
    facts: dict[str, Any] = {
        "encoder": {"model": model},
        "data": {"images": images if images == "reference" else Path(images).name, "pictures": len(pictures)},
    }
    first = start.purifier.float() if start else _purifier(purifier, settings.seed)
    parts = {"purifier": first, "mapper": start.mapper if start else None}
    started_from = {name: part.fingerprint for name, part in parts.items() if part is not None and part.fingerprint}
    if started_from:
        facts["started_from"] = started_from
    if workers is None:
        workers = 0 if device == "cpu" else min(8, os.cpu_count() or 1)
    with RunReport(output / "logs", console, shown=accelerator.is_main_process) as report:
        card = train_psm(
            encoder,
            first,
            pictures,
            output,
            settings,
            mapper=start.mapper.float() if start and start.mapper else None,
            facts=facts,
            accelerator=accelerator,
            workers=workers,
            checkpoint_every=checkpoint_every,
            report=report.step,
        )
    if accelerator.is_main_process:
        scores = ", ".join(f"{name} {score:.4f}" for name, score in card["held_out_score"].items())
        console.print(f"Gaussian robustness score at σ = {settings.sigma[0]:g}: {scores}")
        console.print(f"The PSM is in {output}; use it with --psm {output}", markup=False)


def _list_skipped(skipped: tuple[Skipped, ...], output: Path, console: Console) -> None:
    """Says how many files were left out, and writes their names and reasons to ``skipped.txt``."""
    from fs_runtime.psm.files import write_file

    if not skipped:
        return
    path = output / "skipped.txt"
    write_file(path, "".join(f"{fault.path}\t{fault.reason}\n" for fault in skipped).encode())
    for fault in skipped[:5]:
        console.print(f"left out {fault.path}: {fault.reason}", markup=False)
    console.print(f"{len(skipped)} files were left out; all are listed in {path}", markup=False)


def _purifier(kind: str, seed: int) -> PsmNetwork:
    """A fresh U-Net, or a trained purifier or diffusion model to be tuned."""
    import torch

    from fs_runtime.psm.shipped import shipped_purifiers
    from fs_runtime.psm.storage import CARD, load_purifier
    from fs_runtime.psm.unet import UNetConfig, UNetPurifier

    if kind == "unet":
        torch.manual_seed(seed)
        return UNetPurifier(UNetConfig())
    folder = shipped_purifiers().get(kind, Path(kind))
    if (folder / CARD).is_file():
        return load_purifier(folder)[0]
    from fs_runtime.psm.diffusion import DiffusionPurifier

    return DiffusionPurifier.from_pretrained(kind)
