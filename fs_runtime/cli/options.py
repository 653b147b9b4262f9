"""Options that several commands have, and checks of what they say: ranges alone let what is not a number through."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fs_runtime.options import Dtype
from fs_runtime.reference import reference_model_path, reference_robust_encoder_path

Number = TypeVar("Number", int, float)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Checkpoint folder, hub id, or 'reference' for the one that ships.")
]
PsmOption = Annotated[
    str,
    typer.Option(help="Purifier and mapper: a folder of `train psm`, a purifier that ships ('small'), 'none', 'auto'."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Arithmetic; auto is bfloat16 on a GPU and float32 elsewhere.")]
MaxPixelsOption = Annotated[
    int,
    typer.Option(min=0, help="Most pixels of an image, for models that read any resolution; 0 takes the model's own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]

LARGEST_SEED = 2**62  # generators take 64 bits, and each part of a measurement adds something to its seed


def choices(option: str, text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """The known words that an option lists, separated by commas.

    Raises:
        typer.BadParameter: Another word is among them.
    """
    chosen = tuple(part.strip() for part in text.split(","))
    unknown = [part for part in chosen if part not in known]
    if unknown:
        raise typer.BadParameter(f"{option}: {', '.join(map(repr, unknown))} is not among {', '.join(known)}")
    return chosen


def numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """Positive finite numbers separated by commas, of the kind that an option takes.

    Raises:
        typer.BadParameter: Something else was given.
    """
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} are numbers separated by commas, not {text!r}") from None
    return tuple(positive(option, value) for value in values)


def positive(option: str, value: Number) -> Number:
    """The value of an option that is a positive finite number.

    Raises:
        typer.BadParameter: It is not.
    """
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"{option} must be positive and finite, not {value}")
    return value


def check_folder(option: str, file: Path | None) -> None:
    """Checks before a measurement that what it finds can be written.

    Raises:
        typer.BadParameter: The file that the option names lies in a folder that does not exist.
    """
    if file is not None and not file.parent.is_dir():
        raise typer.BadParameter(f"{option}: the folder {file.parent} does not exist")


def check_plots() -> None:
    """Checks before a measurement that plots of it can be drawn.

    Raises:
        typer.BadParameter: matplotlib is not installed.
    """
    from fs_runtime.evaluation.plotting import PlottingError, require_matplotlib

    try:
        require_matplotlib()
    except PlottingError as error:
        raise typer.BadParameter(str(error)) from None


def probability(option: str, value: float) -> float:
    """The value of an option that lies strictly between 0 and 1.

    Raises:
        typer.BadParameter: It does not.
    """
    if not 0 < value < 1:
        raise typer.BadParameter(f"{option} lies strictly between 0 and 1, for example 0.999")
    return value


def checkpoint_of(model: str) -> str:
    """Folder or hub id that a ``--model`` option means."""
    return str(reference_model_path()) if model == "reference" else model


def numbers_of(text: str, kind: type[Number], option: str, example: str) -> list[Number]:
    """The numbers of a list like ``16,32``; an empty text has none.

    Raises:
        typer.BadParameter: It is no such list; the message names the option and gives the example.
    """
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{option} takes {what} separated by commas, for example {example}") from None


def robust_encoder_folder(option: str, model: str) -> Path | None:
    """What ``--robust-encoder`` means for a model."""
    if option == "auto":
        return reference_robust_encoder_path() if model == "reference" else None
    return None if option == "none" else Path(option)
