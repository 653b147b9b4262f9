"""Options that several commands share, and checks of their values; typer's ranges alone let NaN through."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from fs_runtime.options import Dtype
from fs_runtime.reference import reference_model_path, reference_robust_encoder_path

Number = TypeVar("Number", int, float)
Word = TypeVar("Word", bound=str)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Checkpoint folder, hub id, or 'reference' for the one that ships.")
]
PsmOption = Annotated[
    str,
    typer.Option(
        help="Purifier and mapper: a folder of `train psm`, a purifier that ships ('small'), deepinv:NAME[:WEIGHTS], "
        "diffusion:SOURCE, 'none', 'auto'."
    ),
]
StatisticsOption = Annotated[
    Path | None,
    typer.Option(help="File of `evaluate features`; by default the one in the folder of the PSM or of the model."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Arithmetic; auto is bfloat16 on a GPU and float32 elsewhere.")]
MaxPixelsOption = Annotated[
    int,
    typer.Option(min=0, help="Most pixels of an image, for models that read any resolution; 0 takes the model's own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]

LARGEST_SEED = 2**62  # generators take 64 bits, and the parts of a measurement add numbers to the seed


def choices(option: str, text: str, known: tuple[Word, ...]) -> tuple[Word, ...]:
    """The words of a comma-separated option, all of them known.

    Raises:
        typer.BadParameter: A word is unknown.
    """
    by_name: dict[str, Word] = {word: word for word in known}
    chosen = [part.strip() for part in text.split(",")]
    unknown = [part for part in chosen if part not in by_name]
    if unknown:
        raise typer.BadParameter(f"{option}: {', '.join(map(repr, unknown))} is not among {', '.join(known)}")
    return tuple(by_name[part] for part in chosen)


def positive_numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    """The numbers of a comma-separated option, all of them positive and finite.

    Raises:
        typer.BadParameter: The text has anything else.
    """
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} are numbers separated by commas, not {text!r}") from None
    return tuple(positive(option, value) for value in values)


def positive(option: str, value: Number) -> Number:
    """The value of an option, after checking that it is positive and finite.

    Raises:
        typer.BadParameter: It is not.
    """
    if not 0 < value < math.inf:
        raise typer.BadParameter(f"{option} must be positive and finite, not {value}")
    return value


def check_folder(option: str, file: Path | None) -> None:
    """Checks before a measurement that the folder of an output file exists.

    Raises:
        typer.BadParameter: It does not.
    """
    if file is not None and not file.parent.is_dir():
        raise typer.BadParameter(f"{option}: the folder {file.parent} does not exist")


def check_plots() -> None:
    """Checks before a measurement that matplotlib is installed.

    Raises:
        typer.BadParameter: matplotlib is not installed.
    """
    from fs_runtime.evaluation.plotting import PlottingError, require_matplotlib

    try:
        require_matplotlib()
    except PlottingError as error:
        raise typer.BadParameter(str(error)) from None


def probability(option: str, value: float) -> float:
    """The value of an option, after checking that it lies strictly between 0 and 1.

    Raises:
        typer.BadParameter: It does not.
    """
    if not 0 < value < 1:
        raise typer.BadParameter(f"{option} lies strictly between 0 and 1, for example 0.999")
    return value


def checkpoint_of(model: str) -> str:
    """Folder or hub id that a ``--model`` option selects."""
    return str(reference_model_path()) if model == "reference" else model


def number_list(text: str, kind: type[Number], option: str, example: str) -> list[Number]:
    """Parses a list like ``16,32``; an empty text gives an empty list.

    Raises:
        typer.BadParameter: It is not such a list; the message names the option and gives the example.
    """
    try:
        return [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise typer.BadParameter(f"{option} takes {what} separated by commas, for example {example}") from None


def robust_encoder_folder(option: str, model: str) -> Path | None:
    """Folder that ``--robust-encoder`` selects for a model; None for none."""
    if option == "auto":
        return reference_robust_encoder_path() if model == "reference" else None
    return None if option == "none" else Path(option)
