"""Properties of all bounds: range, order in ρ and c, exact limits, arrays as scalars, refusal of bad values."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fs_runtime.certificate import (
    NormConfidenceSequence,
    Spread,
    SpreadConfidenceSequence,
    StoppingRule,
    certified_radius,
    chi_squared_similarity,
    fcsb,
    fcsb_radius,
    required_norm,
    score_from_norm,
    served_similarity,
    spectral_radius,
    spectral_similarity,
    tight_similarity,
    worst_case_feature,
)

SPREAD = Spread(across=0.01, along=0.04)
Similarity = Callable[..., float]
SIMILARITIES: dict[str, Similarity] = {  # of ρ, r and σ
    "fcsb": lambda norm, radius, sigma: fcsb(score_from_norm(norm), radius, sigma),
    "chi_squared": chi_squared_similarity,
    "tight": tight_similarity,
    "spectral": lambda norm, radius, sigma: spectral_similarity(norm, SPREAD, radius, sigma),
    "served": partial(served_similarity, samples=4096, confidence=0.99),
    "served, stopped": partial(served_similarity, samples=1000, confidence=0.99, max_samples=4096),
}
SMOOTHED = ["fcsb", "chi_squared", "tight", "spectral"]
Radius = Callable[[float, float, float], float]
RADII: dict[str, Radius] = {  # of ρ, σ and the similarity
    "fcsb": lambda norm, sigma, similarity: fcsb_radius(score_from_norm(norm), sigma, similarity),
    "tight": certified_radius,
    "spectral": lambda norm, sigma, similarity: spectral_radius(norm, SPREAD, sigma, similarity),
}
# The computed bounds are at most this much below exact ones, which are monotone.
SLACK = 3e-5

norms = st.one_of(st.floats(0, 1), st.floats(-12, -1).map(lambda power: 1 - 10**power))
ratios = st.one_of(st.floats(0, 12), st.floats(-12, 0).map(lambda power: 10**power), st.just(1e6))
similarities = st.floats(1e-3, 1)
every_similarity = pytest.mark.parametrize("bound", SIMILARITIES.values(), ids=SIMILARITIES)
every_radius = pytest.mark.parametrize("radius", RADII.values(), ids=RADII)


@every_similarity
@settings(deadline=None)
@given(norm=norms, ratio=ratios, sigma=st.floats(1e-3, 1e3))
def test_a_similarity_is_a_float_in_range(bound: Similarity, norm: float, ratio: float, sigma: float) -> None:
    value = bound(norm, ratio * sigma, sigma)
    assert type(value) is float
    assert 0 <= value <= 1


@every_similarity
@settings(deadline=None)
@given(norm=norms, other_norm=norms, ratio=ratios, other_ratio=ratios)
def test_a_similarity_rises_with_the_norm_and_falls_with_the_radius(
    bound: Similarity, norm: float, other_norm: float, ratio: float, other_ratio: float
) -> None:
    best = bound(max(norm, other_norm), min(ratio, other_ratio), 1.0)
    assert bound(min(norm, other_norm), min(ratio, other_ratio), 1.0) <= best + SLACK
    assert bound(max(norm, other_norm), max(ratio, other_ratio), 1.0) <= best + SLACK


@every_similarity
@settings(deadline=None, max_examples=30)
@given(pairs=st.lists(st.tuples(norms, ratios), min_size=1, max_size=20), sigma=st.floats(0.01, 10))
@example(pairs=[(0.0, 1e6), (0.5, 1.375)], sigma=1.0)
def test_arrays_equal_scalars(bound: Similarity, pairs: list[tuple[float, float]], sigma: float) -> None:
    norm, ratio = np.array(pairs).T
    values = bound(norm[:, None], ratio[:, None] * sigma, sigma)
    single = [[bound(float(a), float(r * sigma), sigma)] for a, r in zip(norm, ratio, strict=True)]
    np.testing.assert_array_equal(values, single)


@every_similarity
@settings(deadline=None)
@given(norm=norms, ratio=st.floats(1e-9, 8))
def test_only_the_ratio_counts(bound: Similarity, norm: float, ratio: float) -> None:
    assert bound(norm, ratio * 2.0**-12, 2.0**-12) == bound(norm, ratio * 2.0**12, 2.0**12) == bound(norm, ratio, 1.0)


@every_similarity
@pytest.mark.parametrize("ratio", [0.0, 1e-9, 10.0, 1e6])
def test_limits_of_every_similarity(bound: Similarity, ratio: float) -> None:
    assert bound(0.0, ratio, 1.0) == 0.0
    assert bound(1.0, ratio, 1.0) == pytest.approx(1.0, abs=1e-5)
    nearly = bound(1 - 1e-12, ratio, 1.0)
    assert nearly == (0.0 if ratio >= 10 else pytest.approx(1.0, abs=1e-5))
    for norm in (1e-9, 0.5, 0.9999):
        assert 0 <= bound(norm, ratio, 1.0) <= (1 if ratio < 10 else 0)


@pytest.mark.parametrize("name", SMOOTHED)
@pytest.mark.parametrize("ratio", [0.0, 1e-9, 10.0, 1e6])
def test_exact_limits_of_what_is_smoothed(name: str, ratio: float) -> None:
    bound = SIMILARITIES[name]
    assert bound(1.0, ratio, 1.0) == 1.0
    if ratio < 1:
        assert bound(1 - 1e-12, ratio, 1.0) == pytest.approx(1.0, abs=1.1e-12)
        if ratio == 0 and name != "fcsb":  # the paper's bound is ρ there
            assert bound(1 - 1e-12, 0.0, 1.0) == bound(1e-9, 0.0, 1.0) == 1.0


@settings(deadline=None)
@given(norms, norms)
def test_the_score_is_monotone_and_in_range(norm: float, other: float) -> None:
    assert 0.5 <= score_from_norm(min(norm, other)) <= score_from_norm(max(norm, other)) <= 1


@every_radius
@settings(deadline=None, max_examples=50)
@given(norm=norms, other=norms, wanted=similarities, other_wanted=similarities)
def test_a_radius_rises_with_the_norm_and_falls_with_the_similarity(
    radius: Radius, norm: float, other: float, wanted: float, other_wanted: float
) -> None:
    best = radius(max(norm, other), 1.0, min(wanted, other_wanted))
    assert best >= 0
    assert not np.isnan(best)
    # Where the similarity hardly falls with the radius, its slack is a larger one of the radius.
    assert radius(min(norm, other), 1.0, min(wanted, other_wanted)) <= best * (1 + 1e-3) + 1e-3
    assert radius(max(norm, other), 1.0, max(wanted, other_wanted)) <= best * (1 + 1e-3) + 1e-3


@every_radius
def test_limits_of_a_radius(radius: Radius) -> None:
    for wanted in (1e-9, 0.5, 1 - 1e-12):
        assert radius(0.0, 0.25, wanted) == 0.0
        assert radius(1.0, 0.25, wanted) == np.inf
    assert radius(1 - 1e-12, 0.25, 1.0) <= 0.25e-6
    assert 1.6 < radius(1 - 1e-12, 0.25, 0.5) < 1.8  # Φ⁻¹(1 - p) = 7 at p = 1e-12


@settings(deadline=None, max_examples=50)
@given(norms, similarities)
def test_knowing_the_spread_never_costs_radius(norm: float, wanted: float) -> None:
    assert spectral_radius(norm, SPREAD, 0.25, wanted) >= certified_radius(norm, 0.25, wanted)


@settings(deadline=None, max_examples=50)
@given(similarities, similarities, ratios, ratios)
def test_the_required_norm_is_monotone(wanted: float, other: float, ratio: float, other_ratio: float) -> None:
    most = required_norm(max(wanted, other), max(ratio, other_ratio), 1.0)
    assert required_norm(min(wanted, other), min(ratio, other_ratio), 1.0) <= most + 1e-8
    assert tight_similarity(most, max(ratio, other_ratio), 1.0) >= max(wanted, other)


def test_limits_of_the_required_norm() -> None:
    assert required_norm(0.5, 0.0, 1.0) <= 1e-9
    assert required_norm(1.0, 0.5, 1.0) == 1.0
    assert required_norm(0.5, 1e6, 1.0) == 1.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.floats(0, 1), st.sampled_from([0.5, 0.95, 0.999999]))
def test_the_bound_of_the_norm_rises_with_the_samples_and_with_alpha(
    values: list[float], better: float, confidence: float
) -> None:
    def lower(samples: list[float], confidence: float) -> float:
        sequence = NormConfidenceSequence(confidence)
        sequence.update(np.array(samples))
        return float(sequence.lower)

    found = lower(values, confidence)
    assert 0 <= found < 1
    assert lower([*values, better], confidence) >= found
    assert lower(values, (1 + confidence) / 2) <= found + 1e-9 or len(set(values)) > 1  # the leader may change its mind


@pytest.mark.parametrize("confidence", [1e-12, 0.5, 1 - 1e-12])
def test_extreme_samples_and_confidences(confidence: float) -> None:
    for value in (-1.0, 0.0, 1.0):
        sequence = NormConfidenceSequence(confidence)
        sequence.update(np.full(5000, value))
        assert 0 <= sequence.lower < max(value, 1e-12) + (confidence < 0.1) * 1e-3
    spread = SpreadConfidenceSequence(confidence)
    for observed, count in ((0.0, 0), (0.0, 10**9), (4.0, 10**9), (1e300, 10**9)):
        spread.observe(observed, count)
        bound = spread.bound()
        assert 0 <= bound.across <= 1
        assert 0 <= bound.along <= 4
    assert (bound.across, bound.along) == (1.0, 4.0)


@pytest.mark.parametrize("ratio", [0.0, 1e-9, 10.0, 1e6])
def test_the_stopping_rule_at_its_limits(ratio: float) -> None:
    sequence = NormConfidenceSequence(0.9)
    sequence.update(np.full(100, 0.9))
    decided = StoppingRule(0.5, ratio, 1.0, 200).decide(sequence, np.full(100, 0.9), SpreadConfidenceSequence(0.9))
    assert decided == ("reached" if ratio < 1 else "out_of_reach")


@settings(deadline=None, max_examples=25)
@given(norm=st.floats(0.3, 0.9999), share=st.floats(0.01, 0.99), noise=st.floats(-30, 30))
def test_the_worst_case_is_a_unit_vector(norm: float, share: float, noise: float) -> None:
    radius = share * certified_radius(norm, 1.0, 1e-9)
    assert np.linalg.norm(worst_case_feature(noise, norm, radius, 1.0)) == pytest.approx(1, abs=1e-12)


nan, inf = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: Spread(nan, 0.1), "across"),
        (lambda: Spread(-1e-9, 0.1), "across"),
        (lambda: Spread(1.1, 0.1), "across"),
        (lambda: Spread(0.1, nan), "along"),
        (lambda: Spread(0.1, 4.1), "along"),
        (lambda: spectral_similarity(nan, SPREAD, 0.1, 1.0), "norm"),
        (lambda: spectral_similarity(0.9, SPREAD, -0.1, 1.0), "radius"),
        (lambda: spectral_similarity(0.9, SPREAD, 0.1, 0.0), "sigma"),
        (lambda: spectral_radius(1.1, SPREAD, 1.0), "norm"),
        (lambda: spectral_radius(0.9, SPREAD, inf), "sigma"),
        (lambda: spectral_radius(0.9, SPREAD, 1.0, 0.0), "similarity"),
        (lambda: required_norm(nan, 0.1, 1.0), "similarity"),
        (lambda: required_norm(0.5, inf, 1.0), "radius"),
        (lambda: required_norm(0.5, 0.1, -1.0), "sigma"),
        (lambda: StoppingRule(1.5, 0.1, 1.0, 100), "similarity"),
        (lambda: worst_case_feature(0.0, nan, 0.1, 1.0), "norm"),
        (lambda: SpreadConfidenceSequence(nan), "confidence"),
    ],
)
def test_a_bad_argument_is_refused_by_name(call: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must "):
        call()
