"""``fs-serve train purifier``: trains a purifier for photographs and any encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fs_runtime.cli.options import DeviceOption
from fs_runtime.cli.train.run import PrecisionOption, mixed_precision

if TYPE_CHECKING:
    from fs_runtime.psm.network import PsmNetwork
    from fs_runtime.training.purifier import PurifierSettings


def train(
    output: Annotated[
        Path | None, typer.Option(help="Folder for the purifier; an interrupted run there resumes.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="small or large; by default --start-from's, else small. A small one grows into a large."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 20_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Crops in a step.")] = 4,
    crop: Annotated[int, typer.Option(min=16, max=288, help="Pixels per side of a crop.")] = 96,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 8e-4,
    sigma: Annotated[str, typer.Option(help="Least and greatest noise level.")] = "0.05,1",
    focus: Annotated[str, typer.Option(help="Between these two lie half of the noise levels.")] = "0.1,0.5",
    start_from: Annotated[Path | None, typer.Option(help="Folder of such a purifier to go on training.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of photographs (with its subfolders) to train on beside dead leaves.")
    ] = None,
    leaves: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of dead leaves among the crops, with --images.")
    ] = 0.5,
    teacher: Annotated[
        list[str] | None,
        typer.Option(help="Model whose encoder should see in purified pictures what it sees in clean ones; several."),
    ] = None,
    features: Annotated[
        float, typer.Option(min=0.0, help="Weight of the teachers' features beside pixels in the loss.")
    ] = 4.0,
    seed: Annotated[int, typer.Option(min=0, help="Fixes weights, pictures and noise.")] = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "bfloat16",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw pictures.")] = 1,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Draw pictures of the kind trained on into this PNG, and stop.")
    ] = None,
) -> None:
    """Train a purifier for photographs and any encoder.

    It trains on synthetic pictures that are drawn as it goes; with --images on photographs too, and with --teacher on
    what encoders see.
    """
    from fs_runtime.cli.train.run import require_training_packages
    from fs_runtime.system.files import TrainingError

    if contact_sheet is not None:
        _draw(contact_sheet, seed)
        return
    if output is None:
        raise typer.BadParameter("give the folder for the purifier", param_hint="--output")
    from fs_runtime.psm.residual_unet import SIZES

    if size is None and start_from is None:
        size = "small"
    if size is not None and size not in SIZES:
        raise typer.BadParameter(f"size is {' or '.join(SIZES)}", param_hint="--size")
    require_training_packages("tensorboardX")
    from fs_runtime.training.purifier import PurifierSettings

    try:
        settings = PurifierSettings(
            steps=steps,
            batch_size=batch_size,
            crop=crop,
            learning_rate=learning_rate,
            sigma=_levels("--sigma", sigma),
            focus=_levels("--focus", focus),
            seed=seed,
            precision=mixed_precision(precision, device),
            leaves=leaves,
            features=features,
        )
        _run(settings, size, output, start_from, device, workers, checkpoint_every, images, teacher or [])
    except TrainingError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _run(
    settings: PurifierSettings,
    size: str | None,
    output: Path,
    start_from: Path | None,
    device: str,
    workers: int,
    checkpoint_every: int,
    images: Path | None,
    teachers: list[str],
) -> None:
    import torch
    from rich.console import Console

    from fs_runtime.cli.options import checkpoint_of
    from fs_runtime.encoders import load_encoder
    from fs_runtime.loading.engine import resolve_device
    from fs_runtime.psm.storage import save_purifier
    from fs_runtime.training.data import folder_pictures
    from fs_runtime.training.purifier import train_purifier
    from fs_runtime.training.report import RunReport
    from fs_runtime.training.teachers import Teacher

    console = Console(stderr=True)
    training_device = torch.device(resolve_device(device))
    torch.manual_seed(settings.seed)
    purifier, start_facts = _start(size, start_from)
    pictures = None
    if images is not None:
        pictures = folder_pictures(images)
        console.print(f"{len(pictures)} pictures from {images}, {len(pictures.skipped)} files left out", markup=False)
    learns_from = [
        Teacher.of(name, load_encoder(checkpoint_of(name), device=str(training_device), dtype="float32"))
        for name in teachers
    ]
    with RunReport(output / "logs", console, shown=True) as report:
        facts = train_purifier(
            purifier,
            output,
            settings,
            pictures=pictures,
            teachers=learns_from,
            device=training_device,
            workers=workers,
            checkpoint_every=checkpoint_every,
            report=report.step,
        )
    card = save_purifier(output, purifier, {**start_facts, **facts})
    table = ", ".join(f"{psnr:.2f} dB at σ = {sigma}" for sigma, psnr in card["held_out_psnr"].items())
    console.print(f"PSNR on held-out synthetic pictures: {table}")
    for learnt in card.get("teachers", []):
        kept = ", ".join(f"{value:.3f} at σ = {sigma}" for sigma, value in learnt["held_out_fidelity"].items())
        console.print(f"fidelity of one copy's tokens, {learnt['model']}: {kept}", markup=False)
    console.print(f"The purifier is in {output}; use it with --psm {output}", markup=False)


def _start(size: str | None, start_from: Path | None) -> tuple[PsmNetwork, dict[str, Any]]:
    """The network that training starts from, and entries of the card about it."""
    from fs_runtime.psm.residual_unet import SIZES, ResidualUNetPurifier
    from fs_runtime.psm.storage import load_purifier
    from fs_runtime.system.files import TrainingError

    if start_from is None:
        assert size is not None  # noqa: S101 (the command's default)
        return ResidualUNetPurifier(SIZES[size]), {"name": f"photo-{size}"}
    purifier, card = load_purifier(start_from)
    facts = {"name": card.get("name", "photo"), "started_from": {"purifier": purifier.fingerprint}}
    if size is None:
        return purifier, facts
    if not isinstance(purifier, ResidualUNetPurifier):
        raise TrainingError(f"the purifier in {start_from} is no purifier for photographs; leave --size out")
    try:
        return purifier.grown(SIZES[size]), facts | {"name": f"photo-{size}"}
    except ValueError as error:
        raise TrainingError(f"{error}; leave --size out, or start from another") from None


def _draw(path: Path, seed: int) -> None:
    from PIL import Image

    from fs_runtime.training.dead_leaves import contact_sheet

    Image.fromarray(contact_sheet(seed)).save(path)
    typer.echo(f"Pictures of the kind that purifiers are trained on are in {path}")


def _levels(option: str, text: str) -> tuple[float, float]:
    try:
        low, high = (float(level) for level in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            "give two levels separated by a comma, for example 0.05,1", param_hint=option
        ) from None
    return low, high
