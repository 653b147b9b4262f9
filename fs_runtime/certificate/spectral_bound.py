"""The spectral bound: the similarity certified by ρ and bounds of the variances of f across and along g.

**Theorem.** Let ‖f‖ ≤ 1, ‖g(x)‖ ≥ ρ, E⟨v, f⟩² ≤ λ for every unit v ⊥ g(x), and Var⟨u, f⟩ ≤ V with u = g(x) / ‖g(x)‖.
Let L(z) = exp(c z - c²/2), z ~ N(0, 1), and

    H(λ, c) = max {E[L W] : |W| ≤ 1, E W = 0, E W² ≤ λ}.

Then, for every x' with ‖x' - x‖ ≤ r = c σ, cos(g(x), g(x')) ≥ p / sqrt(p² + H(λ, c)²) where

    p = max(2 Φ(Φ⁻¹((1 + ρ) / 2) - c) - 1,  ρ - 2 H(V / 4, c)),  if p > 0.

*Proof.* Condition f on z, the noise along x' - x; g(x') = E[L f], and the conditions on f survive (Jensen). Across: for
a unit v ⊥ u, W = ⟨v, f⟩ has |W| ≤ 1, E W = 0, E W² ≤ λ, so ⟨v, g(x')⟩ ≤ H(λ, c). Along: ⟨u, f⟩ ∈ [-1, 1] has a mean of
at least ρ, which gives the first term of p (section 2); and W = (‖g‖ - ⟨u, f⟩) / 2 fulfils the conditions of
H(V / 4, c), so ⟨u, g(x')⟩ = ‖g‖ - 2 E[L W] is at least the second. A smaller attack c' < c is covered: with an
independent ξ ~ N(0, 1), z' = (c'/c) z + sqrt(1 - (c'/c)²) ξ turns N(0, 1) and N(c, 1) into N(0, 1) and N(c', 1), so
whatever W does at c', E[W(z') | z] does at c. ∎

**Computing H.** By duality H(λ, c) ≤ E h_μ(L - κ) + μ λ for every κ and μ > 0, with h_μ(a) = a² / (4μ) for |a| ≤ 2μ and
|a| - μ beyond (the largest value of a w - μ w² over |w| ≤ 1). The expectation has a closed form, so that a minimiser
that stops early loses tightness, never soundness. Without the limit |W| ≤ 1 it is Cauchy and Schwarz:
H ≤ sqrt(λ (e^{c²} - 1)).

Source: docs/guarantee.md section 8.
"""

from __future__ import annotations

import numpy as np
from scipy.special import exprel, ndtr

from fs_runtime.certificate.arguments import Array, apply_flat, norm_array, ratio_array, sigma_array, similarity_array
from fs_runtime.certificate.closed_forms import ROUNDING, fcsb_values
from fs_runtime.certificate.spread_bound import Spread
from fs_runtime.certificate.tight_bound import certified_radius, tight_values

_SMALL_RATIO = 0.05  # below it the closed form cancels, and |W| ≤ 1 hardly binds
_LARGE_RATIO = 6.0  # above it nothing is certified, and e^{c²} would soon overflow
_SMALL_VARIANCE = 1e-9  # likewise
_NEWTON_STEPS = 12
_CONVERGED = 1e-10
_MARGIN = 1e-13  # relative to the terms' sizes; more than their rounding errors
_GRID = 33
_ROUNDS = 6


def spectral_similarity(
    norm: float | Array, spread: Spread, radius: float | Array, sigma: float | Array
) -> float | Array:
    """Lower bound of cos(g(x), g(x')) from ρ and the two variances; never below ``tight_similarity`` of the same ρ.

    Args:
        norm: ρ = ‖g(x)‖, or a lower bound of it, in [0, 1].
        spread: Upper bounds of the variances of f. If norm and spread hold with 1 - α and 1 - α', the bound holds
            with 1 - α - α'.
        radius: r, the ℓ2 size of the attack, in pixels of [0, 1].
        sigma: σ, the standard deviation of the noise, in the same unit.

    Returns:
        The bound, a float for floats; 0.0 for no certificate.

    Raises:
        ValueError: An argument is NaN or out of its range.

    Example:
        >>> spread = Spread(across=0.015, along=0.045)
        >>> round(spectral_similarity(norm=0.88, spread=spread, radius=0.25, sigma=0.25), 2)
        0.97
    """
    return apply_flat(
        lambda rho, ratio: spectral_values(rho, spread, ratio), norm_array(norm), ratio_array(radius, sigma)
    )


def spectral_radius(norm: float, spread: Spread, sigma: float, similarity: float = 0.5) -> float:
    """The largest radius found at which ``spectral_similarity`` is at least ``similarity``, to 1e-6 of σ.

    Never below ``certified_radius`` of the same ρ.

    Args:
        norm: ρ in [0, 1].
        spread: Upper bounds of the variances.
        sigma: σ in pixels of [0, 1].
        similarity: The wanted cosine similarity, in (0, 1].

    Returns:
        The radius in the unit of ``sigma``; 0.0 where the similarity is not reached at a positive radius, infinity
        for ρ = 1.

    Raises:
        ValueError: An argument is NaN or out of its range.
    """
    wanted = float(similarity_array(similarity))
    scale = float(sigma_array(sigma))
    rho = np.full(_GRID, float(norm_array(norm)))
    low, high = 0.0, _LARGE_RATIO
    for _ in range(_ROUNDS):  # the bound falls in c
        grid = np.linspace(low, high, _GRID)
        failed = spectral_values(rho, spread, grid) < wanted
        if not failed.any():
            low = high
            break
        first = int(np.argmax(failed))
        if first == 0:
            break
        low, high = float(grid[first - 1]), float(grid[first])
    return max(scale * low, certified_radius(float(norm), scale, wanted))


def spectral_values(norm: Array, spread: Spread, ratio: Array) -> Array:
    """``spectral_similarity`` on checked arrays of one shape; ``ratio`` is c = r / σ."""
    trace = (1 - norm) * (1 + norm)  # E‖f - g‖² bounds every variance
    variances = np.concatenate([np.minimum(spread.across, trace), np.minimum(spread.along, trace) / 4])
    across, along = np.split(worst_shift(variances, np.concatenate([ratio, ratio])), 2)
    length = np.maximum(fcsb_values((1 - norm) / 2, ratio), norm - 2 * along)
    bound = length / np.hypot(np.maximum(length, 1e-300), across) - ROUNDING
    bound = np.where((length > 0) & (ratio <= _LARGE_RATIO), np.maximum(bound, 0.0), 0.0)
    return np.maximum(bound, tight_values(norm, ratio))


def worst_shift(variance: Array, ratio: Array) -> Array:
    """H(λ, c), at or just above it, on arrays of one shape: ``variance`` is λ in [0, 1], ``ratio`` is c."""
    ratio = np.minimum(ratio, _LARGE_RATIO)
    free = ratio * np.sqrt(variance * exprel(ratio**2)) * (1 + _MARGIN)  # Cauchy and Schwarz
    best = free.copy()
    chosen = (ratio > _SMALL_RATIO) & (variance > _SMALL_VARIANCE) & (variance < 1)
    if chosen.any():
        best[chosen] = np.minimum(best[chosen], _clipped_shift(variance[chosen], ratio[chosen]))
    return best


def _clipped_shift(variance: Array, ratio: Array) -> Array:
    """The dual of H by damped Newton steps in (κ, log μ), from the solution without the limit |W| ≤ 1.

    Each element stops when it has converged, so its value does not depend on the other elements.
    """
    centre = np.ones_like(ratio)
    scale = 0.5 * np.log(np.expm1(ratio**2) / variance) - np.log(2)
    damping = np.ones_like(ratio)
    moving = np.ones_like(ratio, dtype=bool)
    value, step = _dual(centre, scale, variance, ratio)
    for _ in range(_NEWTON_STEPS):
        tried_centre = centre + damping * step[0]
        tried_scale = scale + damping * step[1]
        tried_value, tried_step = _dual(tried_centre, tried_scale, variance, ratio)
        better = moving & (tried_value < value)
        centre, scale = np.where(better, tried_centre, centre), np.where(better, tried_scale, scale)
        value = np.where(better, tried_value, value)
        step = np.where(better, tried_step, step)
        damping = np.where(better, 1.0, damping / 4)
        moving &= (np.abs(tried_value - value) > _CONVERGED) | np.any(np.abs(step) > 1e-4, axis=0)
        if not moving.any():
            break
    return value


def _dual(centre: Array, scale: Array, variance: Array, ratio: Array) -> tuple[Array, Array]:
    """E h_μ(L - κ) + μ λ with μ = exp(scale), and a Newton step ``(2, …)`` of it in (κ, log μ)."""
    mu = np.exp(scale)
    shift = ratio**2 / 2
    with np.errstate(divide="ignore"):
        upper = (np.log(np.maximum(centre + 2 * mu, 0)) + shift) / ratio  # L = κ + 2μ at z = upper
        lower = (np.log(np.maximum(centre - 2 * mu, 0)) + shift) / ratio
    # Mass, first and second moment of L below, between and above the two limits.
    below, above = ndtr(lower), ndtr(-upper)
    middle = ndtr(upper) - below
    first_below, first_above = ndtr(lower - ratio), ndtr(ratio - upper)
    first = ndtr(upper - ratio) - first_below
    second = np.exp(ratio**2) * (ndtr(upper - 2 * ratio) - ndtr(lower - 2 * ratio))
    square = second - 2 * centre * first + centre**2 * middle  # E[(L - κ)²; middle]
    edges = (centre - mu) * below - first_below + first_above - (centre + mu) * above
    sizes = (second + 2 * np.abs(centre) * first + centre**2 * middle) / (4 * mu) + 1 + np.abs(centre) + mu
    value = square / (4 * mu) + edges + mu * variance + _MARGIN * sizes
    # Gradient: -E W and μ (λ - E W²), with W = clip((L - κ) / 2μ, -1, 1).
    mean = (first - centre * middle) / (2 * mu) + above - below
    spread = square / (4 * mu**2) + above + below
    cross = (first - centre * middle) / (2 * mu)  # E[W; middle]
    free = square / (4 * mu**2)  # E[W²; middle]
    gradient = np.stack([-mean, mu * (variance - spread)])
    kk, ks, ss = middle / (2 * mu), cross, mu * (variance - spread) + 2 * mu * free
    ss = np.maximum(ss, 1e-3 * mu * variance)
    kk = np.maximum(kk, 1e-12)
    determinant = np.maximum(kk * ss - ks**2, 1e-3 * kk * ss)
    step = -np.stack([ss * gradient[0] - ks * gradient[1], kk * gradient[1] - ks * gradient[0]]) / determinant
    return value, np.clip(step, -2.0, 2.0)
