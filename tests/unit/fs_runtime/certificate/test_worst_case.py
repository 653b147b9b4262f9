"""Attainment: the worst-case feature reaches the tight bound, so that the theorem leaves no room above it."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from fs_runtime.certificate import tight_similarity, worst_case_feature
from fs_runtime.certificate.dual_table import reach_of_norm

Array = NDArray[np.float64]

FRACTIONS = [1e-6, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 0.99999]


def gauss_legendre(ratio: float, turning_point: float) -> tuple[Array, Array]:
    """Nodes and weights of E_z, in panels that shrink towards the point where the worst case turns fastest."""
    points, weights = np.polynomial.legendre.leggauss(30)
    close = np.geomspace(1e-9, 1, 40)
    edges = np.unique(np.concatenate([np.linspace(-10, ratio + 10, 50), turning_point - close, turning_point + close]))
    half, middle = np.diff(edges)[:, None] / 2, (edges[:-1] + edges[1:])[:, None] / 2
    nodes = (middle + half * points).ravel()
    return nodes, (half * weights).ravel() * np.exp(-(nodes**2) / 2) / np.sqrt(2 * np.pi)


def turning_point(norm: float, ratio: float) -> float:
    """Where f passes the middle of its swing from the far left to the far right."""
    low, high = -12.0, 12.0 + ratio
    middle = None
    for _ in range(4):
        grid = np.linspace(low, high, 1001)
        f = worst_case_feature(grid, norm, ratio, 1.0)
        angle = np.unwrap(np.arctan2(f[:, 1], f[:, 0]))
        middle = angle[[0, -1]].mean() if middle is None else middle
        place = int(np.searchsorted(angle, middle))
        low, high = grid[max(place - 1, 0)], grid[min(place, 1000)]
    return float(low)


def attained(norm: float, ratio: float) -> float:
    """cos(g(x), g(x')) of the worst case, by quadrature; ρ is checked on the way."""
    nodes, weights = gauss_legendre(ratio, turning_point(norm, ratio))
    assert weights.sum() == pytest.approx(1, abs=1e-13)
    f = worst_case_feature(nodes, norm, ratio, 1.0)
    assert np.allclose(np.linalg.norm(f, axis=-1), 1, atol=1e-14)
    here = weights @ f
    there = (weights * np.exp(ratio * nodes - ratio**2 / 2)) @ f
    assert here == pytest.approx([norm, 0], abs=1e-12)
    return float(here @ there / np.linalg.norm(here) / np.linalg.norm(there))


@pytest.mark.parametrize("norm", [0.3, 0.6, 0.9, 0.99, 0.9999])
def test_the_worst_case_attains_the_bound(norm: float) -> None:
    reach = float(reach_of_norm(np.asarray(norm)))
    for ratio in reach * np.array(FRACTIONS):
        exact, bound = attained(norm, ratio), tight_similarity(norm, ratio, 1.0)
        assert bound <= exact
        assert exact - bound <= 1e-6


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_between_the_points_of_the_table(count: int) -> None:
    """The shipped table is never above the exact value, and what it loses between its points is far below 1e-4."""
    rng = np.random.default_rng(count)
    norms = np.where(rng.random(count) < 0.5, rng.uniform(0.3, 1, count), 1 - 10 ** rng.uniform(-4, -0.2, count))
    ratios = reach_of_norm(norms) * rng.beta(0.7, 0.7, count)
    exact = np.array([attained(float(norm), float(ratio)) for norm, ratio in zip(norms, ratios, strict=True)])
    lost = exact - tight_similarity(norms, ratios, 1.0)
    assert np.all(lost >= -1e-13)  # the quadrature of the test errs by less
    assert np.all(lost <= 1e-6)


def test_a_bound_that_claims_too_much_is_told_apart() -> None:
    # The control: a bound from a ρ that is too large by 1e-6 is above what the worst case attains.
    for norm, ratio in ((0.6, 0.3), (0.9, 1.0), (0.99, 2.0)):
        assert tight_similarity(norm + 1e-6, ratio, 1.0) > attained(norm, ratio)


def test_the_shift_of_the_noise_is_the_attack() -> None:
    # E f(z + c) by the likelihood ratio, as the theorem has it, and by moving the noise, as an attack does.
    nodes, weights = gauss_legendre(1.0, 1.4)
    by_ratio = (weights * np.exp(nodes - 0.5)) @ worst_case_feature(nodes, 0.9, 0.25, 0.25)
    by_shift = weights @ worst_case_feature(nodes + 1, 0.9, 0.25, 0.25)
    assert by_ratio == pytest.approx(by_shift, abs=1e-9)


def test_shapes() -> None:
    assert worst_case_feature(np.zeros((3, 4)), 0.9, 0.1, 0.25).shape == (3, 4, 2)
    assert worst_case_feature(0.5, 0.9, 0.1, 0.25).shape == (2,)


def test_at_the_edge_it_is_the_sign_of_neyman_and_pearson() -> None:
    # c → Φ⁻¹((1 + ρ) / 2): f is u on the left of c and -u on the right of it.
    reach = float(reach_of_norm(np.asarray(0.9)))
    f = worst_case_feature(np.array([reach - 0.5, reach + 0.5]), 0.9, reach * (1 - 1e-9), 1.0)
    assert f == pytest.approx(np.array([[1, 0], [-1, 0]]), abs=1e-3)
    assert 2 * ndtr(reach) - 1 == pytest.approx(0.9)


@pytest.mark.parametrize(("norm", "radius"), [(1.0, 0.1), (0.0, 0.1), (0.9, 0.0), (0.9, 0.5)])
def test_without_a_bound_there_is_no_worst_case(norm: float, radius: float) -> None:
    with pytest.raises(ValueError, match="norm and radius must allow a bound"):
        worst_case_feature(np.zeros(1), norm, radius, 0.25)
