"""The tight bound: its values, its order among the bounds, its limits, and that the table cannot break it."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fs_runtime.certificate import (
    certified_radius,
    chi_squared_similarity,
    fcsb,
    score_from_norm,
    tight_bound,
    tight_similarity,
)
from fs_runtime.certificate.dual_table import DualTable, reach_of_norm, shipped_table

Array = NDArray[np.float64]

# docs/guarantee.md, section 3: ρ, c, tight, fcsb; 0 for none.
TABLE = [
    (0.99, 0.25, 0.9994, 0.9800),
    (0.99, 0.5, 0.9972, 0.9621),
    (0.99, 1.0, 0.9842, 0.8849),
    (0.99, 1.5, 0.9412, 0.7180),
    (0.95, 0.25, 0.9967, 0.9127),
    (0.95, 0.5, 0.9858, 0.8557),
    (0.95, 1.0, 0.9249, 0.6629),
    (0.95, 1.5, 0.7399, 0.3545),
    (0.90, 0.25, 0.9931, 0.8369),
    (0.90, 0.5, 0.9706, 0.7477),
    (0.90, 1.0, 0.8471, 0.4810),
    (0.90, 1.5, 0.4441, 0.1152),
    (0.80, 0.25, 0.9847, 0.6977),
    (0.80, 0.5, 0.9344, 0.5655),
    (0.80, 1.0, 0.6485, 0.2217),
    (0.80, 1.5, 0.0, 0.0),
    (0.60, 0.25, 0.9565, 0.4459),
    (0.60, 0.5, 0.8079, 0.2674),
    (0.60, 1.0, 0.0, 0.0),
    (0.60, 1.5, 0.0, 0.0),
]
NORMS = np.concatenate([[1e-6, 0.01, 0.1], np.linspace(0.2, 0.99, 40), 1 - np.geomspace(5e-3, 1e-12, 20)])[:, None]
RATIOS = np.concatenate([np.geomspace(1e-6, 0.1, 10), np.linspace(0.15, 4, 80), [5, 6, 7]])
norms = st.one_of(st.floats(0, 1), st.floats(-12, -1).map(lambda power: 1 - 10**power))
ratios = st.one_of(st.floats(0, 8), st.floats(-12, 0).map(lambda power: 10**power))


def turning_angle(norm: Array) -> Array:
    """s of f(x) = (cos ⟨a, x⟩, sin ⟨a, x⟩), s = σ‖a‖: ρ = exp(-s²/2), and the angle is s c."""
    return np.asarray(np.sqrt(-2 * np.log(norm)))


@pytest.mark.parametrize(("norm", "ratio", "tight", "paper"), TABLE)
def test_the_table_of_the_specification(norm: float, ratio: float, tight: float, paper: float) -> None:
    for sigma in (0.25, 1.0):
        assert tight_similarity(norm, ratio * sigma, sigma) == pytest.approx(tight, abs=1e-3)
        assert fcsb(score_from_norm(norm), ratio * sigma, sigma) == pytest.approx(paper, abs=1e-3)


def test_never_below_the_closed_forms() -> None:
    tight = tight_similarity(NORMS, RATIOS, 1.0)
    assert np.all(tight >= fcsb(score_from_norm(NORMS), RATIOS, 1.0))
    assert np.all(tight >= chi_squared_similarity(NORMS, RATIOS, 1.0))
    inside = (NORMS > 0.3) & (NORMS < 0.999) & (RATIOS > 0.1) & (tight > 0.01)
    best = np.maximum(fcsb(score_from_norm(NORMS), RATIOS, 1.0), chi_squared_similarity(NORMS, RATIOS, 1.0))
    assert inside.sum() > 500
    assert np.all(tight[inside] > best[inside])


def test_positive_just_where_the_paper_certifies_too() -> None:
    # Both bounds vanish at c = Φ⁻¹((1 + ρ) / 2); there the tight one falls like a square root.
    norm = np.linspace(0.05, 0.9999, 50)
    reach = reach_of_norm(norm)
    assert np.all(tight_similarity(norm, reach * (1 - 1e-5), 1.0) > 1e-3)
    assert np.all(tight_similarity(norm, reach * (1 + 1e-12), 1.0) == 0)


def test_below_the_sanity_example() -> None:
    norm = NORMS[(NORMS > 0.05) & (NORMS < 1 - 1e-9)][:, None]
    angle = np.minimum(turning_angle(norm) * RATIOS, np.pi)
    tight = tight_similarity(norm, RATIOS, 1.0)
    assert np.all(tight <= np.maximum(np.cos(angle), 0))


def test_touches_the_sanity_example_as_the_norm_nears_one() -> None:
    norm = np.array([0.7, 0.9, 0.97, 0.99, 0.999])
    ratio = 1e-3
    slope = np.arccos(tight_similarity(norm, ratio, 1.0)) / (turning_angle(norm) * ratio)
    assert np.all(slope >= 1)
    assert slope == pytest.approx([1.0817, 1.0102, 1.0011, 1.0001, 1.0], abs=1e-4)


@settings(deadline=None)
@given(norms, norms, ratios, ratios)
def test_monotone(norm: float, other_norm: float, ratio: float, other_ratio: float) -> None:
    # The exact bound is monotone; the computed one is at most 2e-5 below it, and by far less inside.
    better = tight_similarity(max(norm, other_norm), min(ratio, other_ratio), 1.0)
    worse = tight_similarity(min(norm, other_norm), max(ratio, other_ratio), 1.0)
    assert worse <= better + 2e-5
    if 0.3 <= min(norm, other_norm) <= max(norm, other_norm) <= 0.999 and worse > 0.05:
        assert worse <= better + 1e-8


@settings(deadline=None)
@given(norms, ratios, st.floats(1e-3, 1e3))
def test_in_range_and_never_nan(norm: float, ratio: float, sigma: float) -> None:
    assert 0 <= tight_similarity(norm, ratio * sigma, sigma) <= 1


def test_only_the_ratio_counts() -> None:
    values = [tight_similarity(0.9, 0.5 * sigma, sigma) for sigma in (2.0**-20, 1.0, 2.0**20)]
    assert values == [values[1]] * 3


@pytest.mark.parametrize("ratio", [0.0, 1e-300, 1e-9, 0.5, 10.0, 1e200])
def test_extremes(ratio: float) -> None:
    assert tight_similarity(1.0, ratio, 1.0) == 1.0
    assert tight_similarity(0.0, ratio, 1.0) == 0.0
    nearly = tight_similarity(1 - 1e-12, ratio, 1.0)
    assert nearly == (pytest.approx(1.0, abs=1e-10) if ratio < 1 else 0.0)
    for norm in (1e-300, 1e-9, 0.5, 0.9999):
        value = tight_similarity(norm, ratio, 1.0)
        if ratio == 0:
            assert value == 1.0
        elif ratio >= 10:
            assert value == 0.0
    for norm in (0.01, 0.5, 0.9999):
        if ratio < 1e-8:
            assert tight_similarity(norm, ratio, 1.0) == pytest.approx(1.0, abs=1e-13)


RNG = np.random.default_rng(1)
BROKEN: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    "zeros": lambda location, steepness: (0 * location, 0 * steepness),
    "noise": lambda location, steepness: (
        location + RNG.normal(0, 0.3, location.shape),
        steepness + RNG.normal(0, 1, location.shape),
    ),
    "wild": lambda location, steepness: (
        RNG.normal(0, 1e3, location.shape),
        RNG.normal(0, 1e3, location.shape),
    ),
    "swapped": lambda location, steepness: (steepness, location),
    "flatter": lambda location, steepness: (location, steepness - 0.5),
}


@pytest.mark.parametrize("breakage", BROKEN)
def test_a_broken_table_costs_tightness_only(monkeypatch: pytest.MonkeyPatch, breakage: str) -> None:
    norm = np.array([0.3, 0.6, 0.9, 0.97, 0.99, 0.999])[:, None]
    ratio = np.linspace(0.05, 3, 60)
    sound = tight_similarity(norm, ratio, 1.0)
    good = shipped_table()
    table = DualTable(good.log_reach, good.slack, *BROKEN[breakage](good.location, good.steepness))
    monkeypatch.setattr(tight_bound, "shipped_table", lambda: table)
    broken = tight_similarity(norm, ratio, 1.0)
    assert np.all(broken <= sound + 1e-8)
    assert np.all(
        broken >= np.maximum(fcsb(score_from_norm(norm), ratio, 1.0), chi_squared_similarity(norm, ratio, 1.0))
    )
    assert np.any(broken < sound - 1e-4)  # the table was really broken


@settings(deadline=None)
@given(norms, st.floats(1e-3, 10), st.floats(1e-3, 1))
def test_the_radius_holds_and_is_the_largest(norm: float, sigma: float, similarity: float) -> None:
    radius = certified_radius(norm, sigma, similarity)
    if norm == 1:
        assert radius == np.inf
        return
    assert radius >= 0
    if radius > 0:
        assert tight_similarity(norm, radius, sigma) >= similarity
    beyond = radius * (1 + 1e-6) + sigma * 1e-7
    if 0.3 <= norm <= 0.9999:
        assert tight_similarity(norm, beyond, sigma) < similarity


def test_the_radius_of_extremes() -> None:
    assert certified_radius(0.0, 0.25, 0.5) == 0.0
    assert certified_radius(0.9, 0.25, 1.0) == 0.0
    assert certified_radius(1.0, 0.25, 1.0) == np.inf
    assert certified_radius(0.9, 0.25, 1e-6) == pytest.approx(0.25 * reach_of_norm(np.asarray(0.9)), rel=1e-6)


def test_many_radii_equal_single_ones() -> None:
    rng = np.random.default_rng(0)
    norm, similarity = rng.uniform(0.2, 0.999, 40), rng.uniform(0.1, 0.99, 40)
    radii = certified_radius(norm, 0.25, similarity)
    single = [certified_radius(float(a), 0.25, float(b)) for a, b in zip(norm, similarity, strict=True)]
    assert radii.tolist() == single
