"""Whether a recorded certificate lies within the range of its replays, field by field, whatever the fields are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# For numbers that the draws have no part in. They are the same float64 computations, but for another version of a
# mathematical library (the spectral norm comes from an eigenvalue routine).
_EXACT = 1e-9

_INDEX = re.compile(r"\.\d+(?=\.|$)")

LATER_FIELDS: frozenset[str] = frozenset({"certificate.fidelity"})
"""Paths of the certificate's fields that came after the first receipts of this version: a receipt may lack them.
``*`` stands for every entry of a list."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A field that was not reproduced.

    Attributes:
        field: Its path.
        recorded: As the receipt has it.
        replayed: The value in the middle of the range.
    """

    field: str
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        return f"{self.field} is {self.recorded!r}, replayed {self.replayed!r}"


def unknown_fields(recorded: Any, replayed: Any, field: str = "certificate") -> list[str]:
    """Paths of recorded fields that are not computed here: the receipt is of a later fs-serve, or no receipt.

    Args:
        recorded: JSON value.
        replayed: The same value as computed here.
        field: Path of the value.
    """
    if isinstance(recorded, dict) and isinstance(replayed, dict):
        unknown = [f"{field}.{key}" for key in recorded if key not in replayed]
        pairs = [(recorded[key], replayed[key], key) for key in recorded if key in replayed]
    elif isinstance(recorded, list) and isinstance(replayed, list):
        unknown, pairs = [], [(*both, index) for index, both in enumerate(zip(recorded, replayed, strict=False))]
    else:
        return []
    return unknown + [path for one, other, key in pairs for path in unknown_fields(one, other, f"{field}.{key}")]


def differences(
    recorded: Any,
    replays: Sequence[Any],
    tolerance: float,
    field: str = "certificate",
    later: frozenset[str] = LATER_FIELDS,
) -> list[Difference]:
    """Fields of ``recorded`` that the replays do not account for.

    Args:
        recorded: JSON value.
        replays: The same value computed at the lower end, in the middle and at the upper end of the tolerance.
        tolerance: Slack around the range of a number that differs between the replays, for those that move by more
            than the ends show. A number that is the same in all of them must be reproduced to nine digits.
        field: Path of the value.
        later: Paths of fields that an older receipt lacks; it says nothing of them, so nothing is compared.

    Null says that nothing is certified. Between a null and a number, all from 0 to the number is in range.
    """
    middle = replays[1]
    if isinstance(middle, dict):
        if not isinstance(recorded, dict):
            return [Difference(field, _shape(recorded), _shape(middle))]
        expected = [key for key in middle if key in recorded or _INDEX.sub(".*", f"{field}.{key}") not in later]
        if recorded.keys() != set(expected):
            return [Difference(field, _shape(recorded), _shape(middle))]
        return [
            found
            for key in expected
            for found in differences(
                recorded[key], [replay[key] for replay in replays], tolerance, f"{field}.{key}", later
            )
        ]
    if isinstance(middle, list):
        if not isinstance(recorded, list) or {len(recorded)} != {len(replay) for replay in replays}:
            return [Difference(field, _shape(recorded), _shape(middle))]
        return [
            found
            for index, value in enumerate(recorded)
            for found in differences(value, [replay[index] for replay in replays], tolerance, f"{field}.{index}", later)
        ]
    return [] if _in_range(recorded, replays, tolerance) else [Difference(field, recorded, middle)]


def _in_range(recorded: Any, replays: Sequence[Any], tolerance: float) -> bool:
    if not _is_number(recorded):
        return any(type(recorded) is type(value) and recorded == value for value in replays)
    if not any(map(_is_number, replays)):
        return False
    ends = [0.0 if value is None else value for value in replays]
    low, high = min(ends), max(ends)
    slack = tolerance if low < high else _EXACT * abs(low)
    return bool(low - slack <= recorded <= high + slack)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shape(value: Any) -> Any:
    """What tells two structures apart: the fields, the length, or the value itself."""
    if isinstance(value, dict):
        return sorted(value)
    return f"{len(value)} entries" if isinstance(value, list) else value
