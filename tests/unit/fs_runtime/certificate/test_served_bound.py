"""The bound on sampled means: coverage of its concentration inequality, its limits and its arguments."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import brentq

from fs_runtime.certificate import continued, served_similarity, tight_similarity
from fs_runtime.certificate.served_bound import _largest_deviation

Array = NDArray[np.float64]


@settings(deadline=None)
@given(st.floats(1e-6, 1.0), st.floats(1.0, 20.0), st.integers(1, 10**6))
def test_the_deviation_solves_bennetts_equation(variance: float, log_term: float, samples: int) -> None:
    def exponent(epsilon: float) -> float:
        u = 2 * epsilon / variance
        return float(samples * variance / 4 * ((1 + u) * np.log1p(u) - u) - log_term)

    deviation = float(_largest_deviation(np.array([variance]), log_term, samples)[0])
    exact = brentq(exponent, 0, 1e9, xtol=1e-300, rtol=1e-14)
    assert exact * (1 - 1e-9) <= deviation <= exact * 1.001


def deviations(rng: np.random.Generator, dimension: int, spread: float, samples: int, runs: int) -> tuple[float, Array]:
    """‖ĝ - g‖ of clouds with a known mean: f = (ρ, ±sqrt(1 - ρ²) e_j), and ‖S_k‖ / n at its largest k."""
    norm = float(np.sqrt(1 - spread**2))
    direction = rng.integers(0, dimension, (runs, samples))
    signs = rng.choice([-1.0, 1.0], (runs, samples))
    sums = np.zeros((runs, dimension))
    largest = np.zeros(runs)
    for k in range(samples):
        sums[np.arange(runs), direction[:, k]] += spread * signs[:, k]
        largest = np.maximum(largest, np.linalg.norm(sums, axis=1))
    return norm, largest / samples


@pytest.mark.parametrize(("dimension", "spread", "samples"), [(1, 0.6, 60), (3, 0.9, 100), (500, 0.4, 100)])
def test_the_largest_deviation_covers(dimension: int, spread: float, samples: int) -> None:
    alpha, runs = 0.05, 2000
    norm, largest = deviations(np.random.default_rng(0), dimension, spread, samples, runs)
    limit = _largest_deviation(np.array([1 - norm**2]), np.log(2 / alpha), samples)[0]
    failures = np.sum(largest > limit)
    assert failures <= alpha * runs
    assert np.quantile(largest, 0.99) > 0.3 * limit  # of the right order


def test_rare_failures_are_covered() -> None:
    # f = u, but -u with probability p: the mean is off by 2 k / n - 2 p.
    alpha, runs, samples, p = 0.05, 20_000, 100, 0.02
    failures = np.random.default_rng(1).binomial(samples, p, runs)
    norm = 1 - 2 * p
    limit = _largest_deviation(np.array([1 - norm**2]), np.log(2 / alpha), samples)[0]
    assert np.mean(np.abs(2 * failures / samples - 2 * p) > limit) <= alpha


@pytest.mark.parametrize("norm", [0.7, 0.9, 0.99])
def test_it_nears_the_smoothed_bound_from_below(norm: float) -> None:
    ratio = np.linspace(0, 1.0, 11)
    smoothed = tight_similarity(norm, ratio, 1.0)
    last = np.zeros(11)
    for samples in (16, 64, 256, 1024, 10**5, 10**10):
        served = served_similarity(norm, ratio, 1.0, samples, 0.999)
        assert np.all((served >= last) & (served <= smoothed))
        last = served
    assert last == pytest.approx(smoothed, abs=2e-3)


def test_it_covers_sampled_means() -> None:
    """f(x) = (cos s z, sin s z): ĝ(x) and ĝ(x') by sampling, x' at the distance r where it hurts most."""
    rng = np.random.default_rng(2)
    turn, samples, runs = 0.4, 200, 2000
    norm = np.exp(-(turn**2) / 2)
    means = []
    for shift in (0.0, 0.5):
        phase = turn * (rng.standard_normal((runs, samples)) + shift)
        means.append(np.exp(1j * phase).mean(axis=1))
    cosine = np.cos(np.angle(means[1] / means[0]))
    bound = served_similarity(norm, 0.5, 1.0, samples, 0.95)
    assert bound > 0.5
    assert np.mean(cosine < bound) <= 0.05


def test_deciding_while_sampling_costs() -> None:
    fixed = served_similarity(0.95, 0.1, 0.25, 256, 0.999)
    assert served_similarity(0.95, 0.1, 0.25, 256, 0.999, max_samples=256) == fixed
    assert 0 < served_similarity(0.95, 0.1, 0.25, 256, 0.999, max_samples=400) < fixed


@pytest.mark.parametrize("norm", [0.0, 1e-9, 0.5, 1.0])
@pytest.mark.parametrize("ratio", [0.0, 1e-9, 10.0])
def test_extremes(norm: float, ratio: float) -> None:
    value = served_similarity(norm, ratio, 1.0, 4096, 0.999)
    assert type(value) is float
    assert 0 <= value <= tight_similarity(norm, ratio, 1.0)
    assert (value > 0) == (norm == 1 or (norm == 0.5 and ratio < 1))


def test_arrays_equal_scalars() -> None:
    norm, ratio = np.meshgrid([0.6, 0.9, 0.99], [0.1, 0.5])
    values = served_similarity(norm, ratio, 1.0, 512, 0.99)
    assert values.shape == (2, 3)
    for place in np.ndindex(2, 3):
        assert values[place] == served_similarity(float(norm[place]), float(ratio[place]), 1.0, 512, 0.99)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "^samples must be"),
        ({"samples": 64, "max_samples": 32}, "^samples must be"),
        ({"confidence": 1.0}, "^confidence must"),
        ({"norm": 1.2}, "^norm must be"),
        ({"sigma": 0.0}, "^sigma must be"),
        ({"radius": np.nan}, "^radius must be"),
        ({"share": 0.0}, "^share must be"),
        ({"share": 1.5}, "^share must be"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"norm": 0.9, "radius": 0.1, "sigma": 0.25, "samples": 64, "confidence": 0.999}
    with pytest.raises(ValueError, match=message):
        served_similarity(**good | arguments)


def test_a_share_is_a_part_of_alpha() -> None:
    known = {"norm": 0.95, "radius": 0.05, "sigma": 0.25, "samples": 512}
    part = served_similarity(**known, confidence=0.98, share=1 / 8)
    assert part == pytest.approx(served_similarity(**known, confidence=0.9975), abs=1e-12)
    # 1 - α' share would be 1 in double precision.
    least = served_similarity(**known, confidence=1 - 1e-9, share=1e-12)
    assert 0 < least < served_similarity(**known, confidence=1 - 1e-9, share=1e-6) < part


@pytest.mark.parametrize(
    ("planned", "most", "limit", "share"),
    [
        (256, 256, 256, 3 / 4),
        (256, 1, 256, 3 / 4),
        (256, 257, 512, 1 / 8),
        (256, 4096, 4096, 1 / 64),
        (3, 7, 12, 1 / 16),
    ],
)
def test_limits_of_draws_that_are_gone_on_with(planned: int, most: int, limit: int, share: float) -> None:
    assert continued(planned, most) == (limit, share)


def test_all_answers_fail_together_as_rarely_as_one() -> None:
    limits = {continued(10, most) for most in range(1, 100_000)}
    assert sum(share for _, share in limits) <= 1
    assert len({limit for limit, _ in limits}) == len(limits)  # one event for each limit, fixed beforehand


def test_a_limit_of_no_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        continued(0, 5)
