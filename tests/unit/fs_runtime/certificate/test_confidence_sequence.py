"""The confidence sequence: coverage at every time, against laws with a known mean, and its arithmetic."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fs_runtime.certificate import NormConfidenceSequence
from tests.unit.fs_runtime.certificate.laws import vmf_norm, von_mises_fisher

Array = NDArray[np.float64]

ALPHA = 0.05


def failure_limit(alpha: float, runs: int) -> float:
    """Failures that a sequence with failure rate alpha exceeds in about one test run of a thousand."""
    return float(alpha * runs + 3.1 * np.sqrt(alpha * (1 - alpha) * runs))


def ever_failed(samples: Array, norm: float, alpha: float = ALPHA) -> NDArray[np.bool_]:
    """``(runs,)``: whether ``lower`` was above the true value at any time; samples ``(n, runs)``."""
    sequence = NormConfidenceSequence(1 - alpha, shape=samples.shape[1:])
    sequence.update(samples)  # lower never falls, and is evaluated at every sample
    return np.asarray(sequence.lower > norm)


def cloud(rng: np.random.Generator, concentration: float, dimension: int, runs: int, n: int) -> Array:
    """Inner products ``(n, runs)`` with the direction of the mean of all samples before."""
    total = von_mises_fisher(rng, concentration, dimension, runs)
    products = np.empty((n, runs))
    for i in range(n):
        feature = von_mises_fisher(rng, concentration, dimension, runs)
        products[i] = np.sum(feature * total, axis=1) / np.linalg.norm(total, axis=1)
        total += feature
    return products


CLOUDS = [(2, 0.5, 2000, 200), (2, 5.0, 2000, 200), (16, 60.0, 1000, 150), (256, 1500.0, 150, 120)]


@pytest.mark.parametrize(("dimension", "concentration", "runs", "n"), CLOUDS)
def test_coverage_of_clouds_with_a_predictable_direction(
    dimension: int, concentration: float, runs: int, n: int
) -> None:
    products = cloud(np.random.default_rng(dimension), concentration, dimension, runs, n)
    norm = vmf_norm(concentration, dimension)
    assert products[n // 2 :].mean() <= norm  # the direction is never better than the true one
    assert ever_failed(products, norm).sum() <= failure_limit(ALPHA, runs)


def rare_failures(rng: np.random.Generator, p: float, shape: tuple[int, ...]) -> tuple[Array, float]:
    return np.where(rng.random(shape) < p, -1.0, 1.0), 1 - 2 * p


def heavy(rng: np.random.Generator, a: float, b: float, shape: tuple[int, ...]) -> tuple[Array, float]:
    return 2 * rng.beta(a, b, shape) - 1, (a - b) / (a + b)


def against_the_leader(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, float]:
    """The spread answers to what a leader would do: rare failures after a calm past, calm after a failure."""
    calm, mean = np.zeros(shape[1]), 0.9
    samples = np.empty(shape)
    for i in range(shape[0]):
        failing = np.where(rng.random(shape[1]) < 0.05, -1.0, 1.0)
        samples[i] = np.where(calm >= 20, failing, mean + rng.uniform(-0.02, 0.02, shape[1]))
        calm = np.where(samples[i] < 0, 0, calm + 1)
    return samples, mean


def laws(rng: np.random.Generator, shape: tuple[int, ...]) -> Iterator[tuple[str, Array, float]]:
    n = shape[0]
    for factor in (0.2, 1.0, 3.0, 10.0):
        yield f"rare failures, p = {factor}/n", *rare_failures(rng, factor / n, shape)
    yield "spread over all values", *heavy(rng, 1.0, 0.5, shape)
    yield "long left tail", *heavy(rng, 9.0, 0.3, shape)
    yield "coin", *rare_failures(rng, 0.45, shape)
    yield "mean 0, never certified", *rare_failures(rng, 0.5, shape)
    yield "narrow", np.clip(rng.normal(0.99, 0.005, shape), -1, 1), 0.99
    yield "wide", 0.6 + 0.2 * rng.standard_normal(shape).clip(-2, 2), 0.6
    yield "against the leader", *against_the_leader(rng, shape)
    yield "below 0", np.full(shape, -0.3), 0.0


@pytest.mark.parametrize("runs", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_coverage_of_rare_failures_and_heavy_spreads(runs: int) -> None:
    for name, samples, mean in laws(np.random.default_rng(0), (250, runs)):
        assert ever_failed(samples, mean).sum() <= failure_limit(ALPHA, runs), name


@pytest.mark.parametrize("runs", [4000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_rare_failures_use_up_most_of_alpha(runs: int) -> None:
    # The bound is not slack: p is chosen so that a run without a failure up to n is a failure of the sequence,
    # nearly 0.9 α of them by the leader, which is next to all in.
    n = 200
    p = 1 - (ALPHA * 0.9) ** (1 / n)
    samples, mean = rare_failures(np.random.default_rng(3), p, (n, runs))
    failures = ever_failed(samples, mean).mean()
    assert 0.7 * ALPHA < failures < ALPHA + 3 * np.sqrt(ALPHA / runs)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.001])
def test_coverage_in_the_long_run(alpha: float) -> None:
    runs, n = 10_000, 1000
    for seed in range(5):
        rng = np.random.default_rng(100 + seed)
        for name, samples, mean in laws(rng, (n, runs // 5)):
            assert ever_failed(samples, mean, alpha).sum() <= failure_limit(alpha, runs // 5), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dimension", "concentration"), [(2, 0.5), (3, 20.0), (64, 300.0), (1024, 4000.0), (4096, 60_000.0)]
)
def test_coverage_of_clouds_in_the_long_run(dimension: int, concentration: float) -> None:
    runs = 10_000 if dimension <= 64 else 200
    products = cloud(np.random.default_rng(7), concentration, dimension, runs, 200)
    assert ever_failed(products, vmf_norm(concentration, dimension)).sum() <= failure_limit(ALPHA, runs)


def log_capital(samples: Array, mean: float, alpha: float) -> Array:
    """log K by its definition, sample by sample, for one stream: weights, bets and leader as documented."""
    offsets = 1 + 4.0 ** np.arange(-4, 3)
    alone, leading, path = np.ones(len(offsets)), 1.0, []
    for i, x in enumerate(samples):
        leader = offsets[0]
        if i:  # every bet's own root with half of log(1/α), from the samples before
            leader = offsets[
                np.argmax((np.prod(offsets[:, None] + samples[:i], axis=1) * np.sqrt(alpha)) ** (1 / i) - offsets)
            ]
        alone *= (offsets + x) / (offsets + mean)
        leading *= (leader + x) / (leader + mean)
        path.append(0.9 * leading + 0.1 * alone.mean())
    return np.asarray(np.log(path))


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0.5, 0.9999))
def test_lower_is_where_the_capital_meets_the_threshold(values: list[float], confidence: float) -> None:
    samples = np.array(values)
    sequence = NormConfidenceSequence(confidence)
    sequence.update(samples)
    threshold = -np.log1p(-confidence)
    lower = float(sequence.lower)
    if lower > 0:
        assert log_capital(samples, lower, 1 - confidence).max() >= threshold
    assert log_capital(samples, lower + 1e-6, 1 - confidence).max() < threshold + 1e-8


@pytest.mark.parametrize("value", [0.5, 0.9, 0.99])
def test_constant_samples_come_close_to_the_best_possible(value: float) -> None:
    for confidence in (0.95, 0.999):
        sequence = NormConfidenceSequence(confidence)
        sequence.update(np.full(256, value))
        best = (1 + value) * (1 - confidence) ** (1 / 256) - 1
        assert best - 0.0015 < sequence.lower < best


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.001])
@pytest.mark.parametrize("n", [32, 64, 128, 256, 512, 1024])
def test_narrow_samples_cost_at_most_four_percent_more_of_them_than_the_best_possible(n: int, alpha: float) -> None:
    samples = np.random.default_rng(n).normal(0.99, 0.005, (n, 50)).clip(-1, 1)
    sequence = NormConfidenceSequence(1 - alpha, shape=(50,))
    sequence.update(samples)
    growth = np.log1p(samples).sum(axis=0) - n * np.log1p(sequence.lower)  # of the all-in bet at the bound
    assert np.all(growth < 1.04 * np.log(1 / alpha))


def test_after_a_spread_past_the_leader_bets_less() -> None:
    # One bet that is the right one for this law reaches about 0.97; all in never recovers from the first -1.
    samples = np.where(np.random.default_rng(0).random((4096, 20)) < 0.005, -1.0, 1.0)
    sequence = NormConfidenceSequence(0.999, shape=(20,))
    sequence.update(samples)
    assert np.mean(sequence.lower) > 0.965


def test_reference_points() -> None:
    # docs/guarantee.md section 4: ρ = 0.90, α = 0.001, with features that settle as the direction does.
    rng = np.random.default_rng(0)
    ramp = np.sqrt(0.81 / (0.81 + 0.19 / np.arange(1, 1025)))[:, None]
    sequence = NormConfidenceSequence(0.999, shape=(200,))
    reached = {}
    for x in rng.normal(0.9, 0.03, (1024, 200)) * ramp:
        sequence.update(x[None])
        reached[sequence.count] = np.mean(sequence.lower)
    assert reached[64] > 0.68
    assert reached[256] > 0.84
    assert reached[1024] > 0.88


@settings(deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.data())
def test_the_split_into_updates_makes_no_difference(values: list[float], data: st.DataObject) -> None:
    samples = np.array(values)
    cut = data.draw(st.integers(0, len(values)))
    whole, parts, single = (NormConfidenceSequence(0.9) for _ in range(3))
    whole.update(samples)
    parts.update(samples[:cut])
    parts.update(samples[cut:])
    last = 0.0
    for value in values:
        single.update(np.array([value]))
        assert single.lower >= last  # it never falls
        last = float(single.lower)
    assert whole.lower == parts.lower == single.lower
    assert whole.count == parts.count == single.count == len(values)


def test_the_split_makes_no_difference_over_many_blocks() -> None:
    rng = np.random.default_rng(0)
    samples = (2 * rng.beta(2, 0.5, (1200, 5)) - 1) * np.array([1, 1, 1, 1, 0.1])
    whole, parts = NormConfidenceSequence(0.99, (5,)), NormConfidenceSequence(0.99, (5,))
    whole.update(samples)
    for part in np.split(samples, np.cumsum([1, 2, 32, 7, 500, 1, 64])):
        parts.update(part)
    assert np.array_equal(whole.lower, parts.lower)
    assert np.array_equal(whole.forecast(0.9, 2000), parts.forecast(0.9, 2000))


def test_streams_are_independent_of_each_other() -> None:
    samples = np.random.default_rng(0).normal(0.8, 0.2, (200, 3, 400)).clip(-1, 1)  # more than one block
    together = NormConfidenceSequence(0.99, shape=(3, 400))
    together.update(samples)
    for place in ((0, 0), (1, 7), (2, 399)):
        alone = NormConfidenceSequence(0.99)
        alone.update(samples[(slice(None), *place)])
        assert np.asarray(together.lower)[place] == alone.lower


def test_before_any_sample_nothing_is_claimed() -> None:
    sequence = NormConfidenceSequence(0.999)
    assert (sequence.count, sequence.lower) == (0, 0.0)
    assert type(sequence.lower) is float
    assert np.array_equal(NormConfidenceSequence(0.999, shape=(2, 3)).lower, np.zeros((2, 3)))


def test_few_samples_certify_next_to_nothing() -> None:
    sequence = NormConfidenceSequence(0.999)
    sequence.update(np.ones(8))
    assert sequence.lower == 0.0


def test_rounding_beyond_one_is_clipped() -> None:
    beyond, at = NormConfidenceSequence(0.9), NormConfidenceSequence(0.9)
    beyond.update(np.array([1.0000002, -1.5, 1.0] * 20))
    at.update(np.array([1.0, -1.0, 1.0] * 20))
    assert beyond.lower == at.lower


def test_the_bound_is_a_copy() -> None:
    sequence = NormConfidenceSequence(0.9, shape=(2,))
    sequence.update(np.ones((50, 2)))
    np.asarray(sequence.lower)[:] = 1
    assert np.all(sequence.lower < 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_no_number_is_refused(bad: float) -> None:
    sequence = NormConfidenceSequence(0.9)
    sequence.update(np.ones(30))
    before = sequence.lower
    with pytest.raises(ValueError, match="inner_products must be finite"):
        sequence.update(np.array([1.0, bad]))
    assert (sequence.count, sequence.lower) == (30, before)


@pytest.mark.parametrize("shape", [(), (3,), (4, 3, 1), (4, 2)])
def test_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="inner_products must have shape"):
        NormConfidenceSequence(0.9, shape=(3,)).update(np.ones(shape))
