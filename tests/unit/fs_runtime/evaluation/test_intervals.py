import pytest
from scipy.stats import binom

from fs_runtime.evaluation.intervals import mean, proportion, share_at_most


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (950, 1000, 0.9347, 0.9619), (0, 200, 0.0, 0.0188)],
)
def test_wilson(count, total, low, high):
    """Values of the closed form, and the rule of thumb z²/(n + z²) where nothing was counted."""
    found = proportion(count, total)
    assert (found.value, found.low, found.high) == pytest.approx((count / total, low, high), abs=2e-4)


def test_student():
    """Mean 2, standard deviation 1, t = 4.3027 for two degrees of freedom."""
    found = mean([1.0, 2.0, 3.0])
    half = 4.3027 / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half), abs=1e-3)


def test_one_value_has_no_width():
    assert mean([0.5]) == mean([0.5, 0.5]) == mean([0.5, 0.5, 0.5])


@pytest.mark.parametrize(("count", "total"), [(0, 20), (3, 20), (19, 20)])
def test_clopper_and_pearson(count, total):
    """Were the bound the truth, so few would have been counted with a probability of one less the confidence."""
    assert binom.cdf(count, total, share_at_most(count, total, 0.999)) == pytest.approx(0.001)
    assert share_at_most(total, total, 0.999) == 1.0


def test_nothing_to_estimate():
    with pytest.raises(ValueError, match="trial"):
        proportion(0, 0)
    with pytest.raises(ValueError, match="trial"):
        share_at_most(0, 0, 0.999)
    with pytest.raises(ValueError, match="value"):
        mean([])
