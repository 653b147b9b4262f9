"""The bounds that need no optimisation: the paper's (FCSB), its radius, and the χ² bound.

Every function accepts floats and arrays (broadcast against each other) and returns a float for floats. **A positive
value is a certified statement; 0.0 means "no certificate".** No value is negative or NaN. Values are rounded down by
``ROUNDING``, more than double precision can err, except where the bound is exactly 1.

Source: docs/guarantee.md sections 2 and 3; Xia et al., arXiv 2601.16200.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from scipy.special import exprel, ndtr, ndtri

from fs_runtime.certificate.arguments import (
    Array,
    apply_flat,
    norm_array,
    ratio_array,
    score_array,
    sigma_array,
    similarity_array,
)

ROUNDING = 1e-14


@overload
def score_from_norm(norm: float) -> float: ...
@overload
def score_from_norm(norm: Array) -> Array: ...
def score_from_norm(norm: float | Array) -> float | Array:
    """Gaussian robustness score S = (1 + ρ) / 2 against the fixed reference u = g / ‖g‖ (section 2).

    Args:
        norm: ρ = ‖g‖, or a lower bound of it, in [0, 1].

    Raises:
        ValueError: ``norm`` is NaN or outside [0, 1].
    """

    def values(rho: Array) -> Array:
        score = (1 + rho) / 2
        return np.where(2 * score - 1 > rho, np.nextafter(score, 0), score)  # 2 S - 1 is exact: never round S up

    return apply_flat(values, norm_array(norm))


@overload
def fcsb(score: float, radius: float, sigma: float) -> float: ...  # type: ignore[overload-overlap]
@overload
def fcsb(score: float | Array, radius: float | Array, sigma: float | Array) -> Array: ...
def fcsb(score: float | Array, radius: float | Array, sigma: float | Array) -> float | Array:
    """The paper's bound B = 2 Φ(Φ⁻¹(S) - r / σ) - 1 (section 2).

    Args:
        score: S in [0, 1], measured against a reference direction that does not move with x.
        radius: r, the ℓ2 size of the attack, in pixels of [0, 1].
        sigma: σ, the standard deviation of the noise, in the same unit.

    Returns:
        Lower bound of ⟨u, g(x')⟩, and with u = g(x) / ‖g(x)‖ of cos(g(x), g(x')); 0.0 for no certificate.

    Raises:
        ValueError: An argument is NaN or out of its range.
    """
    return apply_flat(fcsb_values, 1 - score_array(score), ratio_array(radius, sigma))


@overload
def fcsb_radius(score: float, sigma: float, similarity: float = 0.5) -> float: ...  # type: ignore[overload-overlap]
@overload
def fcsb_radius(score: float | Array, sigma: float | Array, similarity: float | Array = 0.5) -> Array: ...
def fcsb_radius(score: float | Array, sigma: float | Array, similarity: float | Array = 0.5) -> float | Array:
    """Radius at which the paper's bound falls to ``similarity``: σ (Φ⁻¹(S) - Φ⁻¹((1 + similarity) / 2)) (section 2).

    Args:
        score: S in [0, 1].
        sigma: σ in pixels of [0, 1].
        similarity: The wanted cosine similarity, in (0, 1].

    Returns:
        The radius in the unit of ``sigma``; 0.0 where the similarity is not reached, infinity for S = 1.

    Raises:
        ValueError: An argument is NaN or out of its range.
    """

    def values(score: Array, sigma: Array, similarity: Array) -> Array:
        reached = (1 + similarity) / 2 < score
        ratio = ndtri(score) - ndtri(np.where(reached, (1 + similarity) / 2, 0.5))
        return np.where(reached, sigma * np.maximum(ratio, 0), 0.0)

    return apply_flat(values, score_array(score), sigma_array(sigma), similarity_array(similarity))


@overload
def chi_squared_similarity(norm: float, radius: float, sigma: float) -> float: ...  # type: ignore[overload-overlap]
@overload
def chi_squared_similarity(norm: float | Array, radius: float | Array, sigma: float | Array) -> Array: ...
def chi_squared_similarity(norm: float | Array, radius: float | Array, sigma: float | Array) -> float | Array:
    """The closed form sqrt(1 - (e^{c²} - 1)(1 - ρ²) / ρ²), c = r / σ, never above ``tight_similarity`` (section 3).

    Args:
        norm: ρ = ‖g(x)‖, or a lower bound of it, in [0, 1].
        radius: r in pixels of [0, 1].
        sigma: σ in the same unit.

    Returns:
        Lower bound of cos(g(x), g(x')); 0.0 for no certificate (where the root does not exist).

    Raises:
        ValueError: An argument is NaN or out of its range.
    """
    return apply_flat(chi_squared_values, norm_array(norm), ratio_array(radius, sigma))


def fcsb_values(shortfall: Array, ratio: Array) -> Array:
    """``fcsb`` on checked arrays of one shape, from 1 - S (exact where S nears 1) and c = r / σ."""
    inner = shortfall > 0
    bound = 2 * ndtr(-ndtri(np.where(inner, shortfall, 0.5)) - ratio) - 1 - ROUNDING
    return np.where(inner, np.maximum(bound, 0.0), 1.0)


def chi_squared_values(norm: Array, ratio: Array) -> Array:
    """``chi_squared_similarity`` on checked arrays of one shape; ``ratio`` is c = r / σ."""
    exact = (norm == 1) | ((ratio == 0) & (norm > 0))
    rho = np.where(exact | (norm == 0), 0.5, norm)
    with np.errstate(over="ignore", invalid="ignore"):  # a tiny ρ overflows, and then nothing is certified
        squared_sine = exprel(ratio**2) * (ratio / rho) ** 2 * (1 - rho) * (1 + rho) * (1 + ROUNDING)
    rooted = (norm > 0) & (squared_sine < 1)
    bound = np.maximum(np.sqrt(1 - np.where(rooted, squared_sine, 1.0)) - ROUNDING, 0.0)
    return np.where(exact, 1.0, bound)
