"""Estimates over the pictures of each cell, and paired differences between rows, with 95% intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from fs_runtime.evaluation.intervals import Estimate, mean, proportion
from fs_runtime.evaluation.photographs.cells import MEASURES, NO_PURIFIER, PhotographCell, PhotographKey

UNSMOOTHED = "unsmoothed"


@dataclass(frozen=True, slots=True)
class CellEstimates:
    """A cell's means: Wilson's interval for what is 0 or 1, Student's for the rest.

    Attributes:
        key: Of the cell.
        pictures: How many.
        values: By the names of ``MEASURES``; those that the cell does not have are left out.
    """

    key: PhotographKey
    pictures: int
    values: dict[str, Estimate]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean over pictures of how much more a row has than another on the same picture and, where it is smoothed, noise.

    Student's interval. It is narrower than the rows' own intervals suggest, since both see the same pictures.

    Attributes:
        key: Of the row.
        other: The purifier of the other row, else like this one; or ``unsmoothed`` for the encoder without smoothing.
        pictures: How many both have.
        values: By the names of ``MEASURES``; those that both have.
    """

    key: PhotographKey
    other: str
    pictures: int
    values: dict[str, Estimate]


def estimates_of(cell: PhotographCell) -> CellEstimates:
    """The means of a cell."""
    found = {}
    for measure in MEASURES:
        if values := cell.values.get(measure.name):
            estimate = proportion(round(sum(values)), len(values)) if measure.binary else mean(values)
            found[measure.name] = _within(estimate, 0.0 if measure.share else -1.0, 1.0)
    return CellEstimates(cell.key, cell.pictures, found)


def paired_differences(cells: Sequence[PhotographCell]) -> list[PairedDifference]:
    """Differences between all purifiers under equal attacks, and from the encoder without smoothing.

    Adaptive attacks are made on each row by itself: their pictures have the same number, but not the same pixels.
    """
    found = {cell.key: cell for cell in cells}
    order = list(dict.fromkeys(key.purifier for key in found))
    differences = []
    for cell in cells:
        key = cell.key
        if key.sigma == 0:
            continue
        bare = found.get(dataclasses.replace(key, purifier=NO_PURIFIER, sigma=0.0))
        if bare is not None:
            difference = _difference(cell, bare, UNSMOOTHED)
            if key.attack == "none":
                difference.values.pop("retrieval", None)  # a clean picture always finds itself
            if difference.values:
                differences.append(difference)
        for earlier, later in combinations(order, 2):
            other = found.get(dataclasses.replace(key, purifier=earlier))
            if later == key.purifier and other is not None:
                differences.append(_difference(cell, other, earlier))
    return differences


def _difference(cell: PhotographCell, other: PhotographCell, name: str) -> PairedDifference:
    values = {}
    for measure in MEASURES:
        if measure.name in cell.values and measure.name in other.values:
            pairs = zip(cell.values[measure.name], other.values[measure.name], strict=True)
            most = 1.0 if measure.share else 2.0
            values[measure.name] = _within(mean([one - another for one, another in pairs]), -most, most)
    return PairedDifference(cell.key, name, cell.pictures, values)


def _within(estimate: Estimate, least: float, most: float) -> Estimate:
    """The estimate with an interval that ends where the values do, which Student's does not know."""
    return Estimate(estimate.value, max(estimate.low, least), min(estimate.high, most))
