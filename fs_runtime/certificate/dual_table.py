"""Near-optimal dual points of the tight bound, interpolated from the table that ships with the package.

The table decides how tight the bound is, never whether it holds: :mod:`~fs_runtime.certificate.dual_bound` proves a
valid angle for any dual point. It is built by ``python -m fs_runtime.certificate.build_table``.

Both axes and both entries are chosen so that the entries are smooth, down to the edge of what can be certified:

    reach = Φ⁻¹((1 + ρ) / 2)          the c at which every bound falls to zero; first axis: log reach
    slack = (1 - c / reach)^(1/4)     second axis: 1 for c → 0, 0 at the edge
    location = log(a) / c² + 1/2,     with t e^{iB} = a (1 + i tan B): between 1 and 3/2
    steepness = log(tan B / (c slack²))

Source: docs/guarantee.md section 3, last sentence before the closed form.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.special import ndtri

from fs_runtime.certificate.arguments import Array
from fs_runtime.certificate.dual_bound import ComplexArray

TABLE_NAME = "dual_table.npz"


def reach_of_norm(norm: Array) -> Array:
    """The c = r / σ at which every bound that knows only ρ falls to zero: Φ⁻¹((1 + ρ) / 2)."""
    return np.asarray(-ndtri((1 - norm) / 2))


def dual_point(location: Array, steepness: Array, slack: Array, ratio: Array) -> ComplexArray:
    """The dual point ζ from the table's two entries at (slack, c)."""
    with np.errstate(over="ignore"):  # only with a broken table
        tangent = ratio * slack**2 * np.exp(steepness)
        zeta: ComplexArray = ratio * location + np.log1p(tangent**2) / (2 * ratio) + 1j * (np.arctan(tangent) / ratio)
    return zeta


class DualTable:
    """Bicubic interpolation of the entries; outside the grid the nearest edge is used.

    Args:
        log_reach: ``(m,)`` first axis, increasing.
        slack: ``(n,)`` second axis, increasing.
        location: ``(m, n)`` first entry.
        steepness: ``(m, n)`` second entry.
    """

    def __init__(self, log_reach: Array, slack: Array, location: Array, steepness: Array) -> None:
        self.log_reach = log_reach
        self.slack = slack
        self.location = location
        self.steepness = steepness
        self._location = RectBivariateSpline(log_reach, slack, location)
        self._steepness = RectBivariateSpline(log_reach, slack, steepness)

    def entries(self, norm: Array, ratio: Array) -> tuple[Array, Array, Array]:
        """Location, steepness and slack at ``(n,)`` values of ρ in (0, 1) and of c in (0, reach of ρ)."""
        reach = reach_of_norm(norm)
        slack = (1 - np.minimum(ratio / reach, 1.0)) ** 0.25
        row = np.clip(np.log(reach), self.log_reach[0], self.log_reach[-1])
        column = np.clip(slack, self.slack[0], self.slack[-1])
        return self._location.ev(row, column), self._steepness.ev(row, column), slack

    def zeta(self, norm: Array, ratio: Array) -> ComplexArray:
        """Near-optimal dual points at ``(n,)`` values of ρ in (0, 1) and of c in (0, reach of ρ)."""
        return dual_point(*self.entries(norm, ratio), ratio)

    def save(self, path: Path) -> None:
        """Writes the table as a compressed NumPy archive."""
        np.savez_compressed(
            path,
            log_reach=self.log_reach,
            slack=self.slack,
            location=self.location,
            steepness=self.steepness,
        )

    @classmethod
    def load(cls, path: Path) -> DualTable:
        """Reads what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            return cls(archive["log_reach"], archive["slack"], archive["location"], archive["steepness"])


@cache
def shipped_table() -> DualTable:
    """The table that ships with the package, read once."""
    with as_file(files("fs_runtime.certificate") / TABLE_NAME) as path:
        return DualTable.load(path)
