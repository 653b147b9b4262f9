"""The spectral bound: its ingredients against brute force and known laws, and its place among the other bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm as normal

from fs_runtime.certificate import Spread, fcsb, score_from_norm, spectral_radius, spectral_similarity, tight_similarity
from fs_runtime.certificate.spectral_bound import worst_shift

Z = np.linspace(-10, 14, 48001)
MASS = normal.pdf(Z) * (Z[1] - Z[0])


def feasible_shift(variance: float, ratio: float) -> float:
    """E[L W] of one feasible W: clip((L - κ) / 2μ, -1, 1) with κ and μ by bisection on the two constraints."""
    likelihood = np.exp(ratio * Z - ratio**2 / 2)

    def centred(mu: float) -> np.ndarray:
        low, high = 0.0, float(np.exp(3 * ratio) + 1)
        for _ in range(80):
            middle = (low + high) / 2
            w = np.clip((likelihood - middle) / (2 * mu), -1, 1)
            low, high = (middle, high) if (MASS * w).sum() > 0 else (low, middle)
        return w

    low, high = 1e-6, 1e4
    for _ in range(80):
        mu = float(np.sqrt(low * high))
        w = centred(mu)
        low, high = (mu, high) if (MASS * w**2).sum() > variance else (low, mu)
    return float((MASS * likelihood * w).sum())


@pytest.mark.parametrize("variance", [0.001, 0.05, 0.4])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 2.0])
def test_worst_shift_is_attained_and_not_below(variance: float, ratio: float) -> None:
    attained = feasible_shift(variance, ratio)
    bound = float(worst_shift(np.array([variance]), np.array([ratio]))[0])
    assert attained - 1e-9 <= bound <= attained + 1e-6


def test_worst_shift_of_extreme_arguments() -> None:
    variance, ratio = np.meshgrid([0.0, 1e-300, 1e-12, 1e-6, 0.5, 1.0], [0.0, 1e-300, 1e-9, 0.05, 1.0, 6.0, 1e6])
    shift = worst_shift(variance.ravel(), ratio.ravel())
    assert np.all(np.isfinite(shift))
    assert np.all(shift >= 0)
    assert np.all(shift[(variance * ratio).ravel() == 0] == 0)


def test_covers_a_rotation_with_a_known_angle() -> None:
    # f(x) = (cos⟨a, x⟩, sin⟨a, x⟩): ρ = exp(-s²/2) with s = σ‖a‖, and the angle along a is ‖a‖ r.
    for s in (0.1, 0.3, 0.6):
        rho = np.exp(-(s**2) / 2)
        across = (1 - np.exp(-2 * s**2)) / 2  # Var sin
        along = (1 + np.exp(-2 * s**2)) / 2 - rho**2  # Var cos
        for ratio in (0.1, 0.5, 1.0, 2.0):
            bound = spectral_similarity(float(rho), Spread(across, along), ratio, 1.0)
            assert bound <= max(np.cos(s * ratio), 0) + 1e-12
            if s * ratio < 0.7:
                assert bound > 0.5 * np.cos(s * ratio)


def test_gains_much_over_tight_where_the_spread_is_over_many_directions() -> None:
    spread = Spread(across=0.0126, along=0.035)
    assert tight_similarity(0.88, 1.5, 1.0) < 0.28
    assert spectral_similarity(0.88, spread, 1.5, 1.0) > 0.83


@given(
    rho=st.floats(0, 1),
    across=st.floats(0, 1),
    along=st.floats(0, 4),
    ratio=st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1e-300, 1e-9, 10.0, 1e9])),
)
def test_range_order_and_monotony(rho: float, across: float, along: float, ratio: float) -> None:
    spread = Spread(across, along)
    bound = spectral_similarity(rho, spread, ratio, 1.0)
    assert isinstance(bound, float)
    assert 0 <= bound <= 1
    assert bound >= tight_similarity(rho, ratio, 1.0)
    assert bound >= fcsb(score_from_norm(rho), ratio, 1.0) - 1e-12
    assert spectral_similarity(rho, spread, ratio * 1.1 + 1e-3, 1.0) <= bound + 1e-9
    assert spectral_similarity(rho, Spread(min(1, across * 1.1 + 1e-3), along), ratio, 1.0) <= bound + 1e-9
    assert spectral_similarity(min(1, rho + 1e-3), spread, ratio, 1.0) >= bound - 1e-9


def test_arrays_equal_scalars() -> None:
    spread = Spread(0.02, 0.05)
    norms, ratios = np.array([0.0, 0.5, 0.9, 1 - 1e-12, 1.0]), np.array([0.0, 0.3, 1.0, 2.5])
    table = spectral_similarity(norms[:, None], spread, ratios[None], 1.0)
    assert isinstance(table, np.ndarray)
    for i, rho in enumerate(norms):
        for j, ratio in enumerate(ratios):
            assert table[i, j] == pytest.approx(spectral_similarity(float(rho), spread, float(ratio), 1.0), abs=1e-9)


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.9, 0.999])
def test_radius_inverts_the_bound(similarity: float) -> None:
    spread = Spread(0.01, 0.04)
    radius = spectral_radius(0.9, spread, 0.25, similarity)
    assert spectral_similarity(0.9, spread, radius, 0.25) >= similarity
    assert spectral_similarity(0.9, spread, radius + 1e-6, 0.25) < similarity + 1e-6
    assert spectral_radius(0.0, spread, 0.25, similarity) == 0.0
