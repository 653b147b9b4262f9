"""Setup that the training commands share: packages, device, pictures, encoder, and progress."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fs_runtime.options import MixedPrecision, TrainingPrecision

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.console import Console

    from fs_runtime.encoders import VisionEncoder
    from fs_runtime.training.data import Pictures, Skipped
    from fs_runtime.training.progress import Progress

ImagesOption = Annotated[
    str, typer.Option(help="Folder of pictures (with its subfolders), or 'reference' for drawn scenes and digits.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Pictures in a step, over all processes.")]
PrecisionOption = Annotated[
    TrainingPrecision, typer.Option(help="Arithmetic; auto is bfloat16 (mixed) on a GPU and float32 elsewhere.")
]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes that read pictures.")]
CheckpointOption = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Everything that a training run needs.

    Attributes:
        encoder: The model's vision part, on the accelerator's device.
        pictures: To train on.
        facts: Entries of the card about model and data.
        accelerator: For several processes and mixed precision.
        workers: Processes that read pictures.
        report: Shows a step.
        console: For messages.
    """

    encoder: VisionEncoder
    pictures: Pictures
    facts: dict[str, Any]
    accelerator: Accelerator
    workers: int
    report: Callable[[Progress], None]
    console: Console


def require_training_packages(*packages: str) -> None:
    """Ends the command with a hint unless ``packages`` of the extra ``train`` are installed; all of them by default."""
    try:
        for package in packages or ("accelerate", "tensorboardX"):
            importlib.import_module(package)
    except ModuleNotFoundError as error:
        typer.echo(f"{error.name} is missing: pip install 'fs-serve[train]'", err=True)
        raise typer.Exit(2) from None


def mixed_precision(precision: TrainingPrecision, device: str) -> MixedPrecision:
    """accelerate's name for a ``--precision`` option on a device."""
    on_gpu = device.partition(":")[0] == "cuda"
    return "bf16" if precision == "bfloat16" or (precision == "auto" and on_gpu) else "no"


def select_gpu(device: str, processes: int) -> None:
    """Makes the GPU ``cuda:<index>`` the current one; does nothing for other devices.

    Raises:
        TrainingError: There are several processes, which need one GPU each.
    """
    import torch

    from fs_runtime.system.files import TrainingError

    place = torch.device(device)
    if place.type != "cuda" or place.index is None:
        return
    if processes > 1:
        raise TrainingError(
            f"--device {device} is one GPU, and there are {processes} processes, which take one each: give --device "
            "cuda, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    torch.cuda.set_device(place)


@contextmanager
def open_run(
    model: str,
    images: str,
    output: Path,
    device: str,
    precision: MixedPrecision,
    workers: int | None,
    *,
    frozen: bool = True,
) -> Iterator[TrainingRun]:
    """Finds the pictures, loads the encoder, and opens the progress bar until the run ends.

    Args:
        model: Value of ``--model``.
        images: Value of ``--images``.
        output: Folder of the run; also gets the list of files that were left out.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        precision: Of the passes.
        workers: Processes that read pictures; None for a number that suits the device.
        frozen: Whether the encoder is not trained; then its weights also have the precision of the passes.

    Raises:
        TrainingError: There is no usable picture, or one GPU is given for several processes.
        CheckpointError: The model cannot be loaded.
    """
    from accelerate import Accelerator
    from rich.console import Console

    from fs_runtime.cli.options import checkpoint_of
    from fs_runtime.encoders import load_encoder
    from fs_runtime.training.data import find_pictures
    from fs_runtime.training.report import RunReport

    console = Console(stderr=True)
    on_cpu = device.partition(":")[0] == "cpu"
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu)
    select_gpu(device, accelerator.num_processes)
    pictures, skipped = find_pictures(images)
    if accelerator.is_main_process:
        console.print(f"{len(pictures)} pictures from {images}", markup=False)
        _list_skipped(skipped, output, console)
    dtype = "bfloat16" if precision == "bf16" and frozen else "float32"
    encoder = load_encoder(checkpoint_of(model), device=str(accelerator.device), dtype=dtype)
    facts: dict[str, Any] = {
        "encoder": {"model": model},
        "data": {"images": images if images == "reference" else Path(images).name, "pictures": len(pictures)},
    }
    if workers is None:
        workers = 0 if on_cpu else min(8, os.cpu_count() or 1)
    with RunReport(output / "logs", console, shown=accelerator.is_main_process) as report:
        yield TrainingRun(encoder, pictures, facts, accelerator, workers, report.step, console)


def _list_skipped(skipped: tuple[Skipped, ...], output: Path, console: Console) -> None:
    """Prints how many files were left out, and writes their names and reasons to ``skipped.txt``."""
    from fs_runtime.system.files import write_file

    if not skipped:
        return
    path = output / "skipped.txt"
    write_file(path, "".join(f"{fault.path}\t{fault.reason}\n" for fault in skipped).encode())
    for fault in skipped[:5]:
        console.print(f"left out {fault.path}: {fault.reason}", markup=False)
    console.print(f"{len(skipped)} files were left out; all are listed in {path}", markup=False)
