"""Checks what the options of ``fs-serve evaluate`` say, which typer's ranges alone cannot: not a number is in all."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import typer

_Value = TypeVar("_Value", int, float)

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


def numbers(option: str, text: str, kind: Callable[[str], _Value]) -> tuple[_Value, ...]:
    """Positive finite numbers separated by commas, of the kind that an option takes.

    Raises:
        typer.BadParameter: Something else was given.
    """
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{option} are numbers separated by commas, not {text!r}") from None
    return tuple(positive(option, value) for value in values)


def positive(option: str, value: _Value) -> _Value:
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


def probability(option: str, value: float) -> float:
    """The value of an option that lies strictly between 0 and 1.

    Raises:
        typer.BadParameter: It does not.
    """
    if not 0 < value < 1:
        raise typer.BadParameter(f"{option} lies strictly between 0 and 1, for example 0.999")
    return value
