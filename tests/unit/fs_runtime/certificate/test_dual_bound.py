"""The quadrature of the dual against an elementary bracket, and the soundness of poor dual points."""

import numpy as np
import pytest
from scipy.special import ndtr

from fs_runtime.certificate.dual_bound import mean_distance, proven_angle


def convexity_bracket(zeta: complex, ratio: float) -> tuple[float, float]:
    """Jensen and chords bracket E|L - t e^{iB}| / t: q is convex in L, and each cell of L has closed forms."""
    kink = zeta.real + np.concatenate([-np.geomspace(1e-9, 5, 2000), np.geomspace(1e-9, 5, 2000)])
    z = np.unique(np.concatenate([np.linspace(-9, ratio + 9, 40_001), kink]))
    growth = np.exp(ratio * z - ratio**2 / 2)
    scale = np.exp(ratio * zeta.real - ratio**2 / 2)
    target = scale * np.exp(1j * ratio * zeta.imag)
    left, right = np.concatenate([[-np.inf], z]), np.concatenate([z, [np.inf]])
    # Differences of Φ are taken on the side where both values are small.
    mass = np.where(left > 0, ndtr(-left) - ndtr(-right), ndtr(right) - ndtr(left))
    left, right = left - ratio, right - ratio
    moment = np.where(left > 0, ndtr(-left) - ndtr(-right), ndtr(right) - ndtr(left))  # E[L; cell]
    filled = mass > 0
    jensen = np.sum(mass[filled] * np.abs(moment[filled] / mass[filled] - target))
    q = np.abs(growth - target)
    inner_mass, inner_moment = mass[1:-1], moment[1:-1]
    slope = np.diff(q) / np.diff(growth)
    chords = np.sum(inner_mass * q[:-1] + slope * (inner_moment - growth[:-1] * inner_mass))
    # Beyond the last knot q ≤ q(last) + L - last, below the first q ≤ q(first) + first.
    tails = mass[-1] * q[-1] + moment[-1] + mass[0] * (q[0] + growth[0])
    return jensen / scale, (chords + tails) / scale


@pytest.mark.parametrize("ratio", [0.01, 0.25, 1.0, 2.5, 4.0])
@pytest.mark.parametrize("height", [1e-5, 1e-3, 0.1, 0.49, 0.51, 1.5, 30.0])
@pytest.mark.parametrize("place", [-2.0, 0.0, 1.0, 1.5, 3.9])
def test_mean_distance_lies_in_the_convexity_bracket(ratio: float, height: float, place: float) -> None:
    if ratio * height > np.pi / 2:
        height = 1.5 / ratio
    zeta = place + 1j * height
    low, high = convexity_bracket(zeta, ratio)
    bound = mean_distance(np.array([zeta]), np.array([ratio]))[0]
    assert high - low < 2e-6 * high
    assert low <= bound + 1e-13  # the sums above err by less
    assert bound <= high * (1 + 1e-9) + 1e-9


def test_no_dual_point_proves_too_much() -> None:
    """Against an attainable angle: f(x) = (cos s z, sin s z) has ρ = exp(-s²/2) and turns by the angle s c."""
    rng = np.random.default_rng(0)
    n = 20_000
    turn = rng.uniform(0.05, 1.5, n)
    ratio = 10 ** rng.uniform(-6, 0.8, n)
    norm = np.exp(-(turn**2) / 2)
    zeta = rng.normal(0, 3, n) + 1j * np.exp(rng.normal(-1, 3, n)) * rng.choice([1, 1, 1, -1, 0], n)
    zeta[:4] = [np.nan, np.inf, 1j * np.inf, complex(-np.inf, np.nan)]
    angle = proven_angle(zeta, norm, ratio)
    assert not np.isnan(angle).any()
    assert np.mean(angle < np.pi) > 0.05  # the test has something to say
    assert np.all(angle >= np.minimum(turn * ratio, np.pi))
