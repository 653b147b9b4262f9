"""The table of all bounds of a cosine similarity: name, function, label and colour.

To add a bound, write its function in a module of this folder, and add a row to :data:`BOUNDS` and a field to
:class:`Similarity` and :class:`Bounds`, which answers, receipts and plots read. Older receipts lack the field: name
its paths in ``LATER_FIELDS`` of ``fs_runtime/receipts/comparison.py``, or none of them verifies any more. A bound that
comes first in the table is ``best`` from then on: that changes what a field means, and takes a new version of receipts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from fs_runtime.certificate.arguments import Array
from fs_runtime.certificate.closed_forms import chi_squared_similarity, fcsb, score_from_norm
from fs_runtime.certificate.spectral_bound import spectral_similarity
from fs_runtime.certificate.spread_bound import Spread
from fs_runtime.certificate.tight_bound import tight_similarity


@dataclass(frozen=True, slots=True)
class BoundKind:
    """One way to bound the similarity.

    Attributes:
        name: As in answers and receipts.
        label: Name shown to people.
        colour: In plots.
        at: Maps ρ, the spread (None if unknown), radii ``(n,)`` and σ to ``(n,)`` bounds, 0.0 for no certificate.
            Returns None if the bound needs a spread and there is none.
    """

    name: str
    label: str
    colour: str
    at: Callable[[float, Spread | None, Array, float], Array | None]


def _spectral(norm: float, spread: Spread | None, radius: Array, sigma: float) -> Array | None:
    return None if spread is None else np.asarray(spectral_similarity(norm, spread, radius, sigma))


BOUNDS = (
    BoundKind("spectral", "spectral", "#0072b2", _spectral),
    BoundKind("tight", "tight", "#009e73", lambda norm, _, radius, sigma: tight_similarity(norm, radius, sigma)),
    BoundKind(
        "chi_squared", "χ²", "#e69f00", lambda norm, _, radius, sigma: chi_squared_similarity(norm, radius, sigma)
    ),
    BoundKind(
        "fcsb", "FCSB (the paper)", "#d55e00", lambda norm, _, radius, sigma: fcsb(score_from_norm(norm), radius, sigma)
    ),
)
"""In the order in which they are shown; the first that there is, is the best. All hold at once, as functions of the
same bounds of ρ and of the spread."""


@dataclass(frozen=True, slots=True)
class Similarity:
    """Lower bounds of a cosine similarity; null where nothing is certified.

    Attributes:
        best: ``spectral`` where the spread is known, else ``tight``; all hold at once.
        tight: Best bound that knows only ρ (docs/guarantee.md section 3).
        spectral: The bound that also knows the features' spread (section 8); null if it was not asked for.
        chi_squared: The closed form (section 3), never above ``tight``.
        fcsb: The paper's bound (section 2), for comparison.
    """

    best: float | None
    tight: float | None
    spectral: float | None
    chi_squared: float | None
    fcsb: float | None

    @classmethod
    def at(cls, norm: float | None, spread: Spread | None, radius: float, sigma: float) -> Similarity:
        """All bounds at one radius; all null without ρ or noise."""
        if norm is None or sigma == 0:
            return cls(**dict.fromkeys(field.name for field in fields(cls)))
        found = bounds_at(norm, spread, np.array([radius]), sigma)
        return cls(**{name: values[0] or None if values else None for name, values in asdict(found).items()})


@dataclass(frozen=True, slots=True)
class Bounds:
    """One list per bound, an entry per radius, 0.0 for no certificate; ``spectral`` is null if it was not asked for."""

    best: list[float]
    tight: list[float]
    spectral: list[float] | None
    chi_squared: list[float]
    fcsb: list[float]


def bounds_at(norm: float, spread: Spread | None, radius: Array, sigma: float) -> Bounds:
    """All bounds at each radius of ``radius`` ``(n,)``, from ρ and, if known, the spread."""
    found = {kind.name: kind.at(norm, spread, radius, sigma) for kind in BOUNDS}
    lists: dict[str, Any] = {name: None if bound is None else bound.tolist() for name, bound in found.items()}
    return Bounds(best=next(bound for bound in lists.values() if bound is not None), **lists)
