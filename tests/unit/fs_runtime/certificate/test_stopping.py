"""The stopping rule: it never costs coverage, ends when it should, and its required norm is the smallest."""

import numpy as np
import pytest

from fs_runtime.certificate import (
    NormConfidenceSequence,
    SpreadConfidenceSequence,
    StoppingRule,
    required_norm,
    spectral_similarity,
    tight_similarity,
)


@pytest.mark.parametrize("similarity", [0.01, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("ratio", [0.0, 1e-6, 0.1, 0.5, 1.5, 4.0])
def test_required_norm_is_the_smallest_that_reaches_the_similarity(similarity: float, ratio: float) -> None:
    norm = required_norm(similarity, ratio, 1.0)
    assert tight_similarity(norm, ratio, 1.0) >= similarity
    if norm > 1e-6:
        assert tight_similarity(norm - 1e-6, ratio, 1.0) < similarity


def test_forecast_is_what_the_sequence_then_shows() -> None:
    rng = np.random.default_rng(0)
    for shape in [(), (3,)]:
        sequence = NormConfidenceSequence(0.99, shape)
        sequence.update(rng.uniform(0.5, 1, (20, *shape)))
        value = np.linspace(0.7, 0.9, 3) if shape else 0.8
        forecast = sequence.forecast(value, 90)
        sequence.update(np.broadcast_to(value, (70, *shape)))
        np.testing.assert_allclose(forecast, sequence.lower, rtol=1e-6)
    assert NormConfidenceSequence(0.99).forecast(1.0, 0) == 0.0


def test_forecast_is_never_below_what_the_sequence_then_shows() -> None:
    rng = np.random.default_rng(1)
    for law in (lambda n: rng.uniform(-1, 1, n), lambda n: np.where(rng.random(n) < 0.1, -1.0, 1.0)):
        for value in (0.3, 0.9, 1.0):
            sequence = NormConfidenceSequence(0.9)
            sequence.update(law(50))
            forecast, certain = sequence.forecast(value, 300), sequence.forecast(1.0, 350)
            sequence.update(np.full(250, value))
            assert forecast >= sequence.lower - 1e-7
            sequence.update(law(50))
            assert certain >= sequence.lower - 1e-7


def sampled(mean: float, spread: float, blocks: int, seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).normal(mean, spread, (blocks, 32)), -1, 1)


def rule_for(norm: float, max_samples: int) -> StoppingRule:
    """A rule that wants the similarity which this norm certifies."""
    return StoppingRule(tight_similarity(norm, 0.1, 1.0), 0.1, 1.0, max_samples)


def run(rule: StoppingRule, sequence: NormConfidenceSequence, samples: np.ndarray) -> str:
    for block in samples:
        sequence.update(block)
        decision = rule.decide(sequence, block)
        if decision != "continue":
            return decision
    return "continue"


def test_ends_when_reached_and_not_before() -> None:
    for seed in range(20):
        sequence = NormConfidenceSequence(0.999)
        rule = rule_for(0.85, 32 * 128)
        assert run(rule, sequence, sampled(0.95, 0.03, 128, seed)) == "reached"
        assert sequence.lower >= 0.85 - 1e-6
        assert sequence.count < 32 * 12


def test_gives_up_early_on_what_will_not_be_reached() -> None:
    for seed in range(20):
        sequence = NormConfidenceSequence(0.999)
        rule = rule_for(0.9, 32 * 128)
        assert run(rule, sequence, sampled(0.7, 0.05, 128, seed)) == "out_of_reach"
        assert sequence.count <= 64


def test_gives_up_for_certain_when_even_perfect_samples_would_not_do() -> None:
    sequence = NormConfidenceSequence(0.999)
    sequence.update(np.ones(8))
    assert rule_for(0.99, 100).decide(sequence, np.ones(8)) == "out_of_reach"
    assert rule_for(0.5, 100).decide(sequence, np.ones(8)) == "continue"


@pytest.mark.parametrize("runs", [100, pytest.param(300, marks=pytest.mark.slow)])
def test_rarely_gives_up_on_what_could_be_reached(runs: int) -> None:
    given_up = 0
    for seed in range(runs):
        sequence = NormConfidenceSequence(0.95)
        given_up += run(rule_for(0.87, 32 * 64), sequence, sampled(0.9, 0.1, 64, seed)) == "out_of_reach"
    assert given_up <= 0.02 * runs


@pytest.mark.parametrize("runs", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_stopping_costs_no_coverage(runs: int) -> None:
    """The mean is just below the required norm, so `reached` is wrong, which may happen in at most α of the runs."""
    alpha, wrong = 0.1, 0
    rng = np.random.default_rng(1)
    for _ in range(runs):
        sequence = NormConfidenceSequence(1 - alpha)
        rule = rule_for(0.5, 32 * 16)
        samples = np.where(rng.uniform(size=(16, 32)) < 0.749, 1.0, -1.0)  # mean 0.498
        wrong += run(rule, sequence, samples) == "reached"
    assert wrong <= alpha * runs + 3 * (alpha * (1 - alpha) * runs) ** 0.5
    assert wrong > 0  # the law is hard enough for the test to fail if the sequence were too bold


def test_the_spread_ends_sampling_that_the_norm_alone_would_not() -> None:
    sequence, spread = NormConfidenceSequence(0.9995), SpreadConfidenceSequence(0.9995)
    samples = np.full(1024, 0.9)
    sequence.update(samples)
    spread.observe(0.001, 1024)
    similarity = spectral_similarity(sequence.lower, spread.bound(), 1.0, 1.0)
    assert similarity > tight_similarity(sequence.lower, 1.0, 1.0) + 0.05
    reached = StoppingRule(similarity - 1e-6, 1.0, 1.0, 4096)
    assert reached.decide(sequence, samples[-32:], spread) == "reached"
    assert reached.decide(sequence, samples[-32:]) == "out_of_reach"  # 0.9 will never do for the norm alone
    further = StoppingRule(similarity + 0.003, 1.0, 1.0, 4096)
    assert further.decide(sequence, samples[-32:], spread) == "continue"
    assert StoppingRule(0.9999, 1.0, 1.0, 2048).decide(sequence, samples[-32:], spread) == "out_of_reach"


def test_it_looks_no_sooner_than_anything_can_be_certified() -> None:
    rule = StoppingRule(0.9, 0.1, 0.25, max_samples=1000)
    earliest = rule.earliest(NormConfidenceSequence(0.999), None, 8)
    assert earliest == 8 * 2 ** round(np.log2(earliest / 8))
    sequence = NormConfidenceSequence(0.999)
    sequence.update(np.ones(earliest // 2))
    assert rule.decide(sequence, np.ones(earliest // 2)) == "continue"
    sequence.update(np.ones(earliest - earliest // 2))
    assert rule.decide(sequence, np.ones(8)) == "reached"


def test_what_cannot_be_certified_at_all_is_looked_at_at_once() -> None:
    rule = StoppingRule(0.9999999, 0.5, 0.25, max_samples=100)
    assert rule.earliest(NormConfidenceSequence(0.999), None, 8) == 8
    assert rule.earliest(NormConfidenceSequence(0.999), SpreadConfidenceSequence(0.999), 8) == 8


def test_a_block_is_as_long_as_it_takes_if_samples_stay_as_they_are() -> None:
    rule = StoppingRule(0.95, 0.125, 0.25, max_samples=1000)
    sequence = NormConfidenceSequence(0.999)
    latest = np.full(60, 0.95)
    sequence.update(latest)
    assert rule.decide(sequence, latest) == "continue"
    block = rule.next_block(sequence, latest, None, 8, 512)
    assert 8 <= block < 512
    assert rule.next_block(sequence, latest, None, 8, block // 2) == block // 2  # never above the largest
    assert rule.next_block(sequence, np.full(60, 0.1), None, 8, 512) == 512  # nothing to expect: a full one
    sequence.update(np.full(block, 0.95))
    assert rule.decide(sequence, latest) == "reached"
