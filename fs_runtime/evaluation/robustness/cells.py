"""The cells of the robustness table, and the file that stores finished cells."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fs_runtime.evaluation.intervals import Estimate
from fs_runtime.evaluation.robustness.defences import UNDEFENDED
from fs_runtime.options import Norm
from fs_runtime.system.files import write_file

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


class CellFile:
    """Finished cells, one JSON line each, after a line with the settings of the measurement.

    An incomplete last line is dropped. Cells of other settings are refused.

    Args:
        path: The file; created with its folder if it is missing.
        settings: Settings that all cells share, as JSON values.
        row_specific: Names of settings that affect some rows only. If one is None, here or in the file, those rows are
            missing there, and the value of the other side is used.

    Raises:
        ValueError: The file holds cells of other settings, or a line that is not a cell.
    """

    def __init__(self, path: Path, settings: dict[str, Any], row_specific: Sequence[str] = ()) -> None:
        self._path = path
        self.cells: dict[CellKey, Cell] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        settings = json.loads(json.dumps(settings))
        lines: list[str] = []
        if complete:
            head, *lines = complete.splitlines(keepends=True)
            try:
                found = json.loads(head)["settings"]
                cells = [_cell(json.loads(line)) for line in lines]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} does not hold cells of an evaluation ({error}): move it away") from None
            settings = _joined(path, found, settings, row_specific)
            self.cells = {cell.key: cell for cell in cells}
        contents = "".join((json.dumps({"settings": settings}) + "\n", *lines))
        if contents != text:
            write_file(path, contents.encode())

    def attacked_path(self, name: str, settings: dict[str, Any]) -> Path:
        """Path of attacked images; it depends on the settings that they are made under."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self._path.parent / "attacked" / f"{name}-{digest[:16]}.safetensors"

    def add(self, cell: Cell) -> None:
        """Stores a finished cell; it is on disk when this returns.

        Raises:
            TrainingError: The disk is full or cannot be written.
        """
        line = json.dumps(dataclasses.asdict(cell)) + "\n"
        write_file(self._path, self._path.read_bytes() + line.encode())
        self.cells[cell.key] = cell


def withheld(cells: Sequence[Cell]) -> set[CellKey]:
    """Fixed attacks on defended rows without a measured adaptive attack: alone they would overstate the defence."""
    keys = {cell.key for cell in cells}
    fixed = {key for key in keys if key.attack != NO_ATTACK and key.defence != UNDEFENDED and not key.adaptive}
    return {key for key in fixed if dataclasses.replace(key, adaptive=True) not in keys}


def _joined(path: Path, found: dict[str, Any], settings: dict[str, Any], row_specific: Sequence[str]) -> dict[str, Any]:
    """The union of both settings; ValueError if they differ."""
    found, settings = dict(found), dict(settings)
    for name in row_specific:
        if found.get(name) is None or settings.get(name) is None:
            found[name] = settings[name] = found.get(name) or settings.get(name)
    differing = sorted(name for name in found | settings if found.get(name) != settings.get(name))
    if differing:
        raise ValueError(
            f"{path} was measured under other settings ({', '.join(differing)}): "
            "choose another output folder, or remove it to start again"
        )
    return settings


def _cell(line: dict[str, Any]) -> Cell:
    names = ("accuracy", "changed", "reached", "similarity", "certified", "score")
    estimates = {name: None if line[name] is None else Estimate(**line[name]) for name in names}
    return Cell(**(line | estimates | {"key": CellKey(**line["key"])}))
