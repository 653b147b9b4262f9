"""The cells of the table of photographs: encoder, purifier, noise level and attack, with a value for each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fs_runtime.evaluation.result_file import ResultFile
from fs_runtime.options import Norm

NO_PURIFIER = "none"
AttackKind = Literal["none", "fixed", "adaptive"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One kind of value that a picture has.

    Attributes:
        name: In files.
        title: In tables.
        share: Whether it is a share, in percent in tables.
        binary: Whether it is 0 or 1.
    """

    name: str
    title: str
    share: bool = False
    binary: bool = False


MEASURES = (
    Measure("top1_copy", "top-1, one copy", share=True),  # of the copies
    Measure("top1_smoothed", "top-1, smoothed", share=True, binary=True),
    Measure("top1_vote", "top-1, vote", share=True, binary=True),
    Measure("fidelity", "fidelity"),
    Measure("token_fidelity", "fidelity of tokens"),
    Measure("class_token_fidelity", "fidelity of the class token"),
    Measure("clean_fidelity", "fidelity to the clean"),
    Measure("clean_token_fidelity", "to the clean, of tokens"),
    Measure("clean_class_token_fidelity", "to the clean, of the class token"),
    Measure("norm", "ρ"),
    Measure("certified", "certified"),
    Measure("certified_estimate", "at the estimate of ρ"),
    Measure("retrieval", "finds itself", share=True, binary=True),
)


@dataclass(frozen=True, slots=True)
class PhotographKey:
    """Identifies a cell.

    Attributes:
        encoder: Its name.
        purifier: Its name, or ``none``.
        sigma: σ of the noise in pixels of [0, 1]; 0 for the encoder without smoothing.
        attack: ``fixed`` for one on the encoder without smoothing, ``adaptive`` for one on this row, noise included.
        norm: Of the attack's ball; None without attack.
        radius: Of the ball, in pixels of [0, 1]; 0 without attack.
    """

    encoder: str
    purifier: str
    sigma: float
    attack: AttackKind = "none"
    norm: Norm | None = None
    radius: float = 0.0


@dataclass(frozen=True, slots=True)
class PhotographCell:
    """Measurements of one cell.

    Attributes:
        key: Identifies the cell.
        values: By the names of ``MEASURES``, a value for each picture: all of the measurement's, or the first ones.
            Measures that the cell does not have are left out.
    """

    key: PhotographKey
    values: dict[str, list[float]]

    @property
    def pictures(self) -> int:
        """How many pictures were measured."""
        return len(next(iter(self.values.values())))


class PhotographFile(ResultFile[PhotographCell]):
    """The finished cells.

    Args:
        path: The file; created with its folder if it is missing.
        settings: Settings that all cells share, as JSON values. Of ``parts``, fingerprints by the names of encoders and
            purifiers, a later run may have others.

    Raises:
        ValueError: The file holds cells of other settings, or a line that is not a cell.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        super().__init__(path, settings, _cell, row_specific=("parts",))

    @property
    def cells(self) -> Sequence[PhotographCell]:
        """The cells in the order in which they were finished."""
        return list(self.results.values())


def _cell(line: dict[str, Any]) -> PhotographCell:
    known = {measure.name for measure in MEASURES}
    values = {name: [float(value) for value in values] for name, values in line["values"].items()}
    if not values or values.keys() - known:
        raise ValueError(f"unknown values {sorted(values.keys() - known)}")
    return PhotographCell(PhotographKey(**line["key"]), values)
