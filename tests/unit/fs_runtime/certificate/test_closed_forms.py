"""The paper's bound, its radius and the χ² bound against their formulas."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fs_runtime.certificate import chi_squared_similarity, fcsb, fcsb_radius, score_from_norm

NORMAL = NormalDist()


@pytest.mark.parametrize("norm", [0.0, 0.1, 0.5, 0.9, 0.993, 1.0])
def test_score_is_the_mean_of_one_and_norm(norm: float) -> None:
    assert score_from_norm(norm) == pytest.approx((1 + norm) / 2, abs=2e-16)


@settings(deadline=None)
@given(st.floats(0, 1))
def test_score_never_rounds_up(norm: float) -> None:
    assert 2 * score_from_norm(norm) - 1 <= norm


@settings(deadline=None)
@given(st.floats(0.001, 0.999), st.floats(0, 4), st.floats(0.01, 2))
def test_fcsb_is_the_papers_formula_or_no_certificate(score: float, ratio: float, sigma: float) -> None:
    formula = 2 * NORMAL.cdf(NORMAL.inv_cdf(score) - ratio) - 1
    assert fcsb(score, ratio * sigma, sigma) == pytest.approx(max(formula, 0.0), abs=1e-12)


@settings(deadline=None)
@given(st.floats(0.5, 0.999999), st.floats(0.01, 1), st.floats(0.01, 0.99))
def test_fcsb_falls_to_the_similarity_at_its_radius(score: float, sigma: float, similarity: float) -> None:
    radius = fcsb_radius(score, sigma, similarity)
    if radius > 0:
        assert fcsb(score, radius, sigma) == pytest.approx(similarity, abs=1e-9)
    else:
        assert score <= (1 + similarity) / 2


def test_the_papers_radius_is_the_default() -> None:
    # arXiv 2601.16200: R = σ (Φ⁻¹(S) - Φ⁻¹(0.75)), the similarity 0.5.
    assert fcsb_radius(0.95, 0.25) == pytest.approx(0.25 * (NORMAL.inv_cdf(0.95) - NORMAL.inv_cdf(0.75)), rel=1e-12)
    assert fcsb_radius(0.74, 0.25) == 0.0
    assert fcsb_radius(1.0, 0.25) == np.inf


@settings(deadline=None)
@given(st.floats(0.01, 0.999), st.floats(0, 2))
def test_chi_squared_is_its_formula_or_no_certificate(norm: float, ratio: float) -> None:
    square = 1 - (np.exp(ratio**2) - 1) * (1 - norm**2) / norm**2
    assert chi_squared_similarity(norm, ratio, 1.0) ** 2 == pytest.approx(max(square, 0.0), abs=1e-9)


@pytest.mark.parametrize("ratio", [0.0, 1e-300, 1e-9, 1.0, 10.0, 1e200])
def test_extreme_norms(ratio: float) -> None:
    assert fcsb(1.0, ratio, 1.0) == 1.0
    assert chi_squared_similarity(1.0, ratio, 1.0) == 1.0
    assert fcsb(0.5, ratio, 1.0) == 0.0
    assert fcsb(0.0, ratio, 1.0) == 0.0
    assert chi_squared_similarity(0.0, ratio, 1.0) == 0.0
    assert chi_squared_similarity(1e-300, ratio, 1.0) == (1.0 if ratio == 0 else 0.0)
    assert 0 <= fcsb(np.nextafter(1, 0), ratio, 1e-200) <= 1


def test_a_score_of_one_is_not_reached_by_rounding() -> None:
    # (1 + ρ) / 2 rounds to 1 for the largest double below 1; a score of 1 would certify every radius.
    assert score_from_norm(float(np.nextafter(1, 0))) < 1
    assert fcsb(score_from_norm(float(np.nextafter(1, 0))), 10.0, 1.0) == 0.0
