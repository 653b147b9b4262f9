"""The photographs of a measurement: where they are, which ones are taken, and their classes."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fs_runtime.evaluation.denoising.photographs import PhotographsError, photographs
from fs_runtime.preprocessing.pictures import digest
from fs_runtime.system.files import TrainingError
from fs_runtime.training.data import folder_pictures

_LEADING_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph.

    Attributes:
        name: Its path in its folder, or its name in the package that it comes with.
        digest: SHA-256 of its file, or of its pixels where it comes with a package.
        label: Number of its class; None if it is not known.
        read: Decodes it to ``(H, W, 3)`` uint8 RGB.
    """

    name: str
    digest: str
    label: int | None
    read: Callable[[], NDArray[np.uint8]]


def folder_photographs(folder: Path, labels: Path | None = None) -> list[Photograph]:
    """The photographs of a folder and its subfolders, in order of path.

    Args:
        folder: Of the pictures.
        labels: CSV file of path in the folder and class number; None to take the digits that file names begin with.

    Raises:
        PhotographsError: There is no readable picture, the file of labels is not one, or a picture is not in it.
    """
    try:
        found = folder_pictures(folder)
    except TrainingError as error:
        raise PhotographsError(str(error)) from None
    names = [path.relative_to(folder).as_posix() for path in found.paths]
    known = {name: _leading_number(name) for name in names} if labels is None else read_labels(labels, names)

    def reader(index: int) -> Callable[[], NDArray[np.uint8]]:
        return lambda: found[index]

    return [
        Photograph(name, f"sha256:{found.digests[index].hex()}", known[name], reader(index))
        for index, name in enumerate(names)
    ]


def packaged_photographs() -> list[Photograph]:
    """The photographs that come with Python packages, without classes.

    Raises:
        PhotographsError: A package that brings some is not installed.
    """
    return [_packaged(name, pixels) for name, pixels in photographs().items()]


def chosen(found: Sequence[Photograph], limit: int | None, seed: int) -> list[Photograph]:
    """At most ``limit`` photographs in a random order that depends on the seed alone.

    So those of a smaller limit are the first of those of a larger one.
    """
    order = np.random.default_rng(seed).permutation(len(found))[:limit]
    return [found[int(index)] for index in order]


def read_labels(path: Path, names: Sequence[str]) -> dict[str, int]:
    """Class numbers by picture, from a CSV file with the columns ``file`` and ``label``; its heading may be left out.

    Raises:
        PhotographsError: A line is not of that form, a picture has none, or two.
    """
    labels: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                if not row or (number == 1 and [cell.strip() for cell in row] == ["file", "label"]):
                    continue
                if len(row) != 2 or not row[1].strip().isdecimal():
                    raise PhotographsError(f"--labels {path}, line {number}: give a file and a class number, {row!r}")
                name = row[0].strip()
                if name in labels:
                    raise PhotographsError(f"--labels {path}, line {number}: {name!r} is there twice")
                labels[name] = int(row[1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PhotographsError(f"--labels {path} cannot be read: {error}") from None
    missing = [name for name in names if name not in labels]
    if missing:
        raise PhotographsError(f"--labels {path} has no line for {missing[0]!r} and {len(missing) - 1} more pictures")
    return labels


def classes_of(found: Sequence[Photograph], classes: int | None) -> list[int] | None:
    """The class of each photograph; None unless all have one among those that an encoder knows.

    Args:
        found: The photographs.
        classes: How many classes the encoder knows; None if it does not classify.
    """
    labels = [photograph.label for photograph in found]
    if classes is None or any(label is None or label >= classes for label in labels):
        return None
    return [label for label in labels if label is not None]


def _packaged(name: str, pixels: NDArray[np.uint8]) -> Photograph:
    return Photograph(name, digest(pixels), None, lambda: pixels)


def _leading_number(name: str) -> int | None:
    digits = _LEADING_DIGITS.match(Path(name).name)
    return int(digits.group()) if digits else None
