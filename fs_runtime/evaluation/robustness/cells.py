"""The cells of the robustness table, and the file that stores finished cells."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fs_runtime.evaluation.intervals import Estimate
from fs_runtime.evaluation.result_file import ResultFile
from fs_runtime.evaluation.robustness.defences import UNDEFENDED
from fs_runtime.options import Norm

NO_ATTACK = "none"


@dataclass(frozen=True, slots=True)
class CellKey:
    """Identifies a cell.

    Attributes:
        defence: Name of the row.
        attack: Name of the attack, or ``none``.
        norm: Of the attack's ball; None without attack.
        size: ε in 255ths of the pixel range, of the ℓ∞ ball or of the one whose corners the ℓ2 ball reaches; 0 without
            attack.
        adaptive: Whether the attack was made on this row, noise included, rather than on the undefended model.
        samples: n.
    """

    defence: str
    attack: str
    norm: Norm | None
    size: float
    adaptive: bool
    samples: int


@dataclass(frozen=True, slots=True)
class Cell:
    """Measurements of one cell; every estimate with its 95% interval.

    Attributes:
        key: Identifies the cell.
        images: Items asked.
        accuracy: Share of right answers; every item is one that the undefended model answers correctly.
        changed: Untargeted attack success: share of wrong answers among the items that this row answers correctly
            without attack. None without attack.
        reached: Targeted attack success: share of answers that equal the target's. None without a target.
        similarity: Cosine similarity, mean over tokens, of this row's features with and without attack.
        certified: Mean certified similarity (tight, image granularity) at ``radius``; 0 where nothing is certified.
        score: Mean Gaussian robustness score (1 + ρ)/2, a plug-in estimate; None for a single noisy sample.
        seconds: Time of the smoothing pass per image, in shared batches.
        radius: ℓ2 radius of ``certified``, in pixels of [0, 1].
    """

    key: CellKey
    images: int
    accuracy: Estimate
    changed: Estimate | None
    reached: Estimate | None
    similarity: Estimate
    certified: Estimate
    score: Estimate | None
    seconds: float
    radius: float


class CellFile(ResultFile[Cell]):
    """The finished cells of the robustness table.

    Args:
        path: The file; created with its folder if it is missing.
        settings: Settings that all cells share, as JSON values.
        row_specific: Names of settings that affect some rows only (:class:`ResultFile`).

    Raises:
        ValueError: The file holds cells of other settings, or a line that is not a cell.
    """

    def __init__(self, path: Path, settings: dict[str, Any], row_specific: Sequence[str] = ()) -> None:
        super().__init__(path, settings, _cell, row_specific)

    @property
    def cells(self) -> dict[Hashable, Cell]:
        """The cells by their keys."""
        return self.results


def withheld(cells: Sequence[Cell]) -> set[CellKey]:
    """Fixed attacks on defended rows without a measured adaptive attack: alone they would overstate the defence."""
    keys = {cell.key for cell in cells}
    fixed = {key for key in keys if key.attack != NO_ATTACK and key.defence != UNDEFENDED and not key.adaptive}
    return {key for key in fixed if dataclasses.replace(key, adaptive=True) not in keys}


def _cell(line: dict[str, Any]) -> Cell:
    names = ("accuracy", "changed", "reached", "similarity", "certified", "score")
    estimates = {name: None if line[name] is None else Estimate(**line[name]) for name in names}
    return Cell(**(line | estimates | {"key": CellKey(**line["key"])}))
