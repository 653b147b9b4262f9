"""The angle that a dual point of the tight bound proves, with a proven bound of the quadrature error.

**Dual points.** Section 3 of docs/guarantee.md bounds the angle by any θ with D(θ) < 0, and any λ bounds D(θ) from
above. Write λ = t (-sin(θ + B), cos(θ + B)), which is the vector w turned by B and scaled by t > 0. Then
‖w L - λ‖ = |L - t e^{iB}| does not depend on θ, and

    D(θ) ≤ E_z |L(z) - t e^{iB}| - t ρ sin(θ + B).

So every pair (t, B) proves the angle

    θ = arcsin(h / ρ) - B,    h = E_z |L(z) - t e^{iB}| / t,                                                   (*)

wherever h < ρ (λ₁ ≤ 0 holds, as sin(θ + B) ≥ 0). With the complex number ζ = x + iy for which L(ζ) = t e^{iB}, that is
t = exp(c x - c²/2) and B = c y, the integrand becomes q(z) = |e^{c (z - x)} - e^{iB}|, and ζ has a limit as c → 0.
Here 0 < B < π/2.

**Quadrature.** q² = (L - L(ζ)) (L - L(ζ̄)) / t² is analytic in z, and its zeros ζ, ζ̄ (and their shifts by 2πi/c)
have an imaginary part of at least y. For an integrand F that is analytic in the strip |Im s| < τ and has ∫ |F| ≤ M on
all its lines, the trapezoidal rule with step h differs from ∫ F by at most 2 M / (e^{2πτ/h} - 1) (Trefethen and
Weideman, "The exponentially convergent trapezoidal rule", SIAM Review 2014, Theorem 5.1). We use it twice:

- plain, s = z and τ = η ≤ y. From |q| ≤ (|L| + t) / t and |φ(a + ib)| = φ(a) e^{b²/2} follows
  M ≤ e^{η²/2} (1/t + 1).
- stretched, for small y: z = x + y sinh s and τ = π/6. All zeros have the real part x. There the line Im s = υ has
  the height y sin υ < y, so the zeros stay outside the strip. On that line (Im z)² = y² sin² υ +
  tan² υ (Re z - x)² and |dz| ≤ d(Re z) / cos υ, and the Gaussian integral gives
  M ≤ √2 e^{y²/8} (e^{(x - c)²/4} / t + e^{x²/4}).

The sum is cut at z = -8 and z = c + 8. Beyond these points the bound of the integrand falls monotonically in s, so the
omitted terms add up to at most its integral, 2 Φ(-8) (1/t + 1).

The value of h is raised by both errors, and by ``FLOAT_MARGIN`` relative for the arithmetic: all terms are positive,
none is a difference of larger ones, so double precision errs by less than 1e-13 relative.

Source: docs/guarantee.md section 3.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from fs_runtime.certificate.arguments import Array

ComplexArray = NDArray[np.complex128]

FLOAT_MARGIN = 1e-12
_REACH = 8.0
_NODES = 288
_PLAIN_FROM = 0.5
_BLOCK = 64


def proven_angle(zeta: ComplexArray, norm: Array, ratio: Array) -> Array:
    """The angle (*) that each dual point proves.

    Args:
        zeta: ``(n,)`` dual points ζ. Any value is sound: a poor one proves a large angle, B outside (0, π/2] none.
        norm: ``(n,)`` ρ in (0, 1).
        ratio: ``(n,)`` c = r / σ, positive.

    Returns:
        ``(n,)`` upper bounds of the angle between g(x) and g(x'), in radians; π where nothing is proven.
    """
    with np.errstate(all="ignore"):  # a poor dual point may overflow; its angle becomes π
        turn = ratio * zeta.imag  # B
        sine = mean_distance(zeta, ratio) / norm  # sin(θ + B)
        angle = np.arcsin(np.minimum(sine, 1.0)) - turn
        proven = (turn > 0) & (turn <= np.pi / 2) & (sine < 1)
        return np.where(proven, np.maximum(angle, 0.0), np.pi)


def mean_distance(zeta: ComplexArray, ratio: Array) -> Array:
    """Upper bound of h = E_z |L(z) / t - e^{iB}|, shape ``(n,)``."""
    stretched = (zeta.imag < _PLAIN_FROM) & (zeta.real > 1 - _REACH) & (zeta.real < ratio + _REACH - 1)
    bound = np.empty(zeta.shape)
    for rule, chosen in ((stretched_rule, stretched), (plain_rule, ~stretched)):
        indices = np.flatnonzero(chosen)
        for start in range(0, len(indices), _BLOCK):  # a block of nodes stays in the cache
            block = indices[start : start + _BLOCK]
            offset, weight, error = rule(zeta[block], ratio[block])
            mean = np.einsum("nk,nk->n", distance(offset, zeta[block], ratio[block]), weight)
            bound[block] = mean * (1 + FLOAT_MARGIN) + error
    return bound


def distance(offset: Array, zeta: ComplexArray, ratio: Array) -> Array:
    """q = |e^{c (z - x)} - e^{iB}| at the offsets z - x, without cancellation for small c or z near x.

    Args:
        offset: ``(n, k)`` z - x.
        zeta: ``(n,)`` dual points.
        ratio: ``(n,)`` c.

    Returns:
        ``(n, k)`` values.
    """
    growth = np.expm1(ratio[:, None] * offset)
    chord = 4 * np.sin(ratio * zeta.imag / 2) ** 2  # |1 - e^{iB}|²
    return np.asarray(np.sqrt(growth * growth + (1 + growth) * chord[:, None]))


def plain_rule(zeta: ComplexArray, ratio: Array) -> tuple[Array, Array, Array]:
    """The trapezoidal rule in z for E_z, with the error bound of the module's docstring.

    Returns:
        Offsets z - x ``(n, k)``, weights ``(n, k)`` (normal density included), proven error of h ``(n,)``.
    """
    width = 2 * _REACH + ratio
    step = width / (_NODES - 1)
    nodes = width[:, None] * np.linspace(0, 1, _NODES) - _REACH
    weight = step[:, None] * _normal_density(nodes)
    depth = np.minimum(zeta.imag, 1.0)
    inverse_scale = _inverse_scale(zeta, ratio)
    line_integral = np.exp(depth**2 / 2) * (1 + inverse_scale)
    error = 2 * line_integral / np.expm1(2 * np.pi * depth / step) + _tails(inverse_scale)
    return nodes - zeta.real[:, None], weight, error


def stretched_rule(zeta: ComplexArray, ratio: Array) -> tuple[Array, Array, Array]:
    """The trapezoidal rule in s, z = x + y sinh s, for E_z; returns what :func:`plain_rule` returns."""
    x, y = zeta.real, zeta.imag
    low = np.arcsinh((-_REACH - x) / y)
    width = np.arcsinh((ratio + _REACH - x) / y) - low
    step = width / (_NODES - 1)
    growing = np.exp(low[:, None] + width[:, None] * np.linspace(0, 1, _NODES))
    falling = 1 / growing
    offset = (y / 2)[:, None] * (growing - falling)
    weight = (step * y / 2)[:, None] * (growing + falling) * _normal_density(x[:, None] + offset)
    inverse_scale = _inverse_scale(zeta, ratio)
    line_integral = np.sqrt(2) * np.exp(y**2 / 8) * (np.exp((x - ratio) ** 2 / 4) * inverse_scale + np.exp(x**2 / 4))
    error = 2 * line_integral / np.expm1(np.pi**2 / (3 * step)) + _tails(inverse_scale)
    return offset, weight, error


def _inverse_scale(zeta: ComplexArray, ratio: Array) -> Array:
    return np.asarray(np.exp(ratio * (ratio / 2 - zeta.real)))  # 1 / t


def _tails(inverse_scale: Array) -> Array:
    return 2 * ndtr(-_REACH) * (1 + inverse_scale)  # bounds the integral beyond the outermost nodes


def _normal_density(z: Array) -> Array:
    return np.asarray(np.exp(-z * z / 2) / np.sqrt(2 * np.pi))
