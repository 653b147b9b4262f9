"""The tight bound: the best similarity, and the largest radius, that ρ alone can certify.

Both functions accept floats and arrays (broadcast against each other) and return a float for floats. **A positive
value is a certified statement; 0.0 means "no certificate".** No value is negative or NaN.

The value is cos θ of the angle that :mod:`~fs_runtime.certificate.dual_bound` proves with the dual point that
:mod:`~fs_runtime.certificate.dual_table` proposes, or a closed form where that is larger. Quadrature, arithmetic and
rounding err on the safe side, whatever the table holds.

Source: docs/guarantee.md section 3.
"""

from __future__ import annotations

from typing import overload

import numpy as np

from fs_runtime.certificate.arguments import Array, apply_flat, norm_array, ratio_array, sigma_array, similarity_array
from fs_runtime.certificate.closed_forms import ROUNDING, chi_squared_values, fcsb_values
from fs_runtime.certificate.dual_bound import proven_angle
from fs_runtime.certificate.dual_table import reach_of_norm, shipped_table

# The dual point is looked up for a slightly smaller ρ, so that it still proves an angle with the safety margins of h.
_LOOKUP_MARGIN = 4e-12
_RADIUS_PRECISION = 1e-10  # relative
_MAX_STEPS = 100


@overload
def tight_similarity(norm: float, radius: float, sigma: float) -> float: ...  # type: ignore[overload-overlap]
@overload
def tight_similarity(norm: float | Array, radius: float | Array, sigma: float | Array) -> Array: ...
def tight_similarity(norm: float | Array, radius: float | Array, sigma: float | Array) -> float | Array:
    """Largest similarity certified by ‖g(x)‖ ≥ ρ within the ℓ2 ball of radius r.

    At most 1e-4 below the exact value of the theorem for ρ in [0.3, 0.9999], and never above it.

    Args:
        norm: ρ, a lower bound of ‖g(x)‖, in [0, 1].
        radius: r, the ℓ2 size of the attack, in pixels of [0, 1].
        sigma: σ, the standard deviation of the noise, in the same unit.

    Returns:
        Lower bound of cos(g(x), g(x')) for every x' with ‖x' - x‖ ≤ r; 0.0 for no certificate.

    Raises:
        ValueError: An argument is NaN or out of its range.

    Example:
        >>> round(tight_similarity(norm=0.9, radius=0.125, sigma=0.25), 4)
        0.9706
    """
    return apply_flat(tight_values, norm_array(norm), ratio_array(radius, sigma))


@overload
def certified_radius(norm: float, sigma: float, similarity: float) -> float: ...  # type: ignore[overload-overlap]
@overload
def certified_radius(norm: float | Array, sigma: float | Array, similarity: float | Array) -> Array: ...
def certified_radius(norm: float | Array, sigma: float | Array, similarity: float | Array) -> float | Array:
    """Largest radius at which :func:`tight_similarity` is at least ``similarity``.

    Args:
        norm: ρ, a lower bound of ‖g(x)‖, in [0, 1].
        sigma: σ, the standard deviation of the noise, in pixels of [0, 1].
        similarity: The wanted cosine similarity, in (0, 1].

    Returns:
        A radius in the unit of ``sigma`` at which ``tight_similarity(norm, radius, sigma) >= similarity`` holds as
        computed; 0.0 where none is certified, infinity for ρ = 1.

    Raises:
        ValueError: An argument is NaN or out of its range.

    Example:
        >>> round(certified_radius(norm=0.9, sigma=0.25, similarity=0.9706), 3)
        0.125
    """
    return apply_flat(_radius_values, norm_array(norm), sigma_array(sigma), similarity_array(similarity))


def tight_values(norm: Array, ratio: Array) -> Array:
    """``tight_similarity`` on checked arrays of one shape; ``ratio`` is c = r / σ."""
    bound = np.maximum(fcsb_values((1 - norm) / 2, ratio), chi_squared_values(norm, ratio))
    inner = np.flatnonzero((norm > 0) & (norm < 1) & (ratio > 0))
    inner = inner[ratio[inner] < reach_of_norm(norm[inner])]
    rho, c = norm[inner], ratio[inner]
    angle = proven_angle(shipped_table().zeta(rho * (1 - _LOOKUP_MARGIN), c), rho, c)
    bound[inner] = np.maximum(bound[inner], np.cos(angle) - ROUNDING)
    return bound


def _radius_values(norm: Array, sigma: Array, similarity: Array) -> Array:
    """Regula falsi (Illinois) for the square of the similarity, which is nearly linear in the radius."""
    searched = np.flatnonzero((norm > 0) & (norm < 1) & (similarity < 1))
    low, high = np.zeros(norm.shape), np.zeros(norm.shape)  # the similarity holds at low, not at high
    high[searched] = sigma[searched] * reach_of_norm(norm[searched])
    at_low, at_high = 1 - similarity**2, -(similarity**2)
    held = np.zeros(norm.shape, dtype=np.int64)  # steps in a row that moved low (positive) or high (negative)
    for _ in range(_MAX_STEPS):
        i = np.flatnonzero(high - low > _RADIUS_PRECISION * high)
        if not i.size:
            break
        inset = _RADIUS_PRECISION / 2 * high[i]
        guess = low[i] + (high[i] - low[i]) * at_low[i] / (at_low[i] - at_high[i])
        guess = np.clip(guess, low[i] + inset, high[i] - inset)
        value = tight_values(norm[i], guess / sigma[i])
        holds = value >= similarity[i]
        at_guess = value**2 - similarity[i] ** 2
        held[i] = np.where(holds, np.maximum(held[i], 0) + 1, np.minimum(held[i], 0) - 1)
        # If an end stays for two steps, its value is halved, so that the next guess falls closer to it.
        at_low[i] = np.where(holds, at_guess, at_low[i] * np.where(held[i] < -1, 0.5, 1))
        at_high[i] = np.where(holds, at_high[i] * np.where(held[i] > 1, 0.5, 1), at_guess)
        low[i], high[i] = np.where(holds, guess, low[i]), np.where(holds, high[i], guess)
    return np.where(norm == 1, np.inf, low)
