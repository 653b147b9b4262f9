"""The betting schemes of the literature: each is a martingale at the true mean, and grows as its definition says."""

import numpy as np
import pytest

from fs_runtime.benchmarks import other_bets as bets
from fs_runtime.benchmarks.bets import SCHEMES

ALPHA = 0.05


@pytest.mark.parametrize("name", SCHEMES)
def test_no_scheme_gains_on_the_true_mean(name: str) -> None:
    scheme, _ = SCHEMES[name]
    rng = np.random.default_rng(0)
    runs, n = 1000, 60
    for samples, mean in (
        (np.where(rng.random((n, runs)) < 0.05, -1.0, 1.0), 0.9),
        (2 * rng.beta(2, 0.5, (n, runs)) - 1, 0.6),
    ):
        capital = np.exp(scheme(samples, np.full((runs, 1), mean), ALPHA)[..., 0])
        assert capital.shape == (n, runs)
        early = capital[4]  # later on the mean is made up by a few rich runs
        assert early.mean() <= 1 + 4 * early.std() / np.sqrt(runs)
        limit = ALPHA * runs + 3.1 * np.sqrt(ALPHA * (1 - ALPHA) * runs)
        assert np.sum(capital.max(axis=0) >= 1 / ALPHA) <= limit


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_gains_on_a_mean_that_is_too_small(name: str) -> None:
    scheme, _ = SCHEMES[name]
    samples = np.random.default_rng(0).normal(0.8, 0.1, (200, 2)).clip(-1, 1)
    gained = scheme(samples, np.array([[0.0, 0.3]] * 2), ALPHA)
    assert np.all(gained[-1] > np.log(1 / ALPHA))
    assert np.all(gained[-1, :, 0] > gained[-1, :, 1])


@pytest.mark.parametrize("name", SCHEMES)
def test_no_bet_looks_ahead(name: str) -> None:
    scheme, _ = SCHEMES[name]
    samples = np.random.default_rng(0).uniform(-1, 1, (40, 1))
    changed = samples.copy()
    changed[20:] *= -1
    means = np.array([[0.1, 0.5]])
    np.testing.assert_array_equal(scheme(samples, means, ALPHA)[:20], scheme(changed, means, ALPHA)[:20])
    # The factor of sample 20 is linear in it with a stake that is already placed, but for the variance's price.
    if name != "empirical Bernstein":
        middle = samples.copy()
        middle[20] = (samples[20] + changed[20]) / 2
        up, down, between = (np.exp(scheme(x, means, ALPHA)[20]) for x in (samples, changed, middle))
        np.testing.assert_allclose(between, (up + down) / 2, rtol=1e-9)


def test_capital_by_hand() -> None:
    samples, means = np.array([[0.5], [-0.2]]), np.array([[0.25]])
    assert np.exp(bets.all_in(samples, means, ALPHA))[-1, 0, 0] == pytest.approx(1.5 * 0.8 / 1.25**2)
    # Beta(1/2, 1/2) has mean 1/2 and mean square 3/8.
    first, second = 1.5 / 1.25 - 1, 0.8 / 1.25 - 1
    expected = 1 + 0.5 * (first + second) + 0.375 * first * second
    assert np.exp(bets.universal_portfolio(samples, means, ALPHA))[-1, 0, 0] == pytest.approx(expected)
    halves = np.exp(bets.all_in_and_portfolio(samples, means, ALPHA))[-1, 0, 0]
    assert halves == pytest.approx((1.5 * 0.8 / 1.25**2 + expected) / 2)
    # aGRAPA: nothing is staked while the mean so far, 1/2 of [0, 1] to begin with, is not above the candidate.
    assert bets.growth_rate_optimal(samples, means, ALPHA)[0, 0, 0] == 0
