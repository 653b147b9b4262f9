"""The bound of the largest variance: coverage at every time at once, and what it costs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs_runtime.certificate import SpreadConfidenceSequence

CHECKED = (4, 16, 64, 200)


def sphere_law(kind: str, dimension: int, rng: np.random.Generator, count: int) -> np.ndarray:
    """Unit vectors ``(count, dimension)`` of a law that is symmetric about its first axis."""
    if kind == "cloud":
        across = rng.normal(0, 0.3 / np.sqrt(dimension), (count, dimension))
        across[:, 1] *= 4
    elif kind == "rare":
        across = np.zeros((count, dimension))
        across[:, 1] = 50 * (rng.random(count) < 0.02) * rng.choice([-1, 1], count)
    else:  # wide
        across = rng.standard_t(2, (count, dimension))
    across[:, 0] = 1
    return across / np.linalg.norm(across, axis=1, keepdims=True)


def observe(samples: np.ndarray, alpha: float) -> list[tuple[float, float]]:
    """(across, along) at each checked count; the largest eigenvalue is exact."""
    sequence = SpreadConfidenceSequence(1 - alpha)
    means = np.cumsum(samples, axis=0)[:-1] / np.arange(1, len(samples))[:, None]
    deviations = samples[1:] - means
    found = []
    for count in CHECKED:
        values = np.linalg.eigvalsh(deviations[:count].T @ deviations[:count] / count)
        sequence.observe(float(values[-1]), count)
        bound = sequence.bound()
        found.append((bound.across, bound.along))
    return found


@pytest.mark.parametrize("kind", ["cloud", "rare", "wide"])
@pytest.mark.parametrize("runs", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_coverage_at_every_count_at_once(kind: str, runs: int) -> None:
    rng = np.random.default_rng(5)
    dimension, alpha = 6, 0.1
    exact = sphere_law(kind, dimension, rng, 400_000)
    across = float(np.linalg.eigvalsh(exact[:, 1:].T @ exact[:, 1:] / len(exact))[-1])  # E f is along the first axis
    along = float(exact[:, 0].var())
    failures = 0
    for _ in range(runs):
        found = observe(sphere_law(kind, dimension, rng, max(CHECKED) + 1), alpha)
        failures += any(high < across * 0.99 or along_high < along * 0.99 for high, along_high in found)
    assert failures <= runs * alpha + 3 * np.sqrt(runs * alpha * (1 - alpha))


@given(observed=st.floats(0, 4), count=st.integers(0, 5000), alpha=st.floats(1e-9, 0.5))
def test_range_and_monotony(observed: float, count: int, alpha: float) -> None:
    sequence = SpreadConfidenceSequence(1 - alpha)
    sequence.observe(observed, count)
    bound = sequence.bound()
    assert min(observed, 1) * 0.99 <= bound.across <= 1
    assert bound.across <= bound.along <= 4 or bound.along >= min(observed, 4) * 0.99
    more = SpreadConfidenceSequence(1 - alpha)
    more.observe(observed + 0.01, count)
    assert more.bound().across >= bound.across
    assert sequence.forecast(observed, 1000).across <= bound.across + 1e-9


def test_nothing_observed_bounds_nothing() -> None:
    bound = SpreadConfidenceSequence(0.999).bound()
    assert (bound.across, bound.along) == (1.0, 4.0)


def test_price_is_that_of_unseen_events() -> None:
    # Without any spread seen in m samples an event of probability log(1/α) / m cannot be excluded.
    sequence = SpreadConfidenceSequence(0.999)
    sequence.observe(0.0, 1023)
    assert sequence.bound().across < 1.3 * np.log(2 / 0.001) / 1023


def test_refuses_what_cannot_be() -> None:
    sequence = SpreadConfidenceSequence(0.99)
    with pytest.raises(ValueError, match="observed must be finite"):
        sequence.observe(float("nan"), 3)
    sequence.observe(0.1, 5)
    with pytest.raises(ValueError, match="count must not fall"):
        sequence.observe(0.1, 4)
    with pytest.raises(ValueError, match="confidence"):
        SpreadConfidenceSequence(1.0)
