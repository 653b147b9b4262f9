"""Betting schemes of the literature, for comparison with :class:`NormConfidenceSequence`; no certificate uses them.

Each scheme is a function ``(samples, means, alpha)`` that returns the logarithm of its capital against candidates of
the mean, at every time. ``samples`` ``(n, streams)`` lie in [-1, 1]; ``means`` ``(streams, candidates)`` in [0, 1); the
result is ``(n, streams, candidates)``. A candidate is rejected once the capital reaches 1/α. Bets
are one-sided: λ = β / (1 + m), with β in [0, 1] the share of the capital that is at stake.

Sources: [WSR] Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 2024;
[OJ] Orabona and Jun, "Tight concentrations and confidence sequences from the regret of universal portfolio", IEEE
Transactions on Information Theory 2024; [RB] Ryu and Bhatt, "On confidence sequences for bounded random processes via
universal gambling strategies", IEEE Transactions on Information Theory 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fs_runtime.certificate.arguments import Array

Scheme = Callable[[Array, Array, float], Array]

_CAUTION = 0.5  # largest share of the capital that the bets of [WSR] stake
_PORTFOLIO_NODES = 16
_GRID_NODES = 10
# b and weights of the mixture over (b + X) / (b + m), an earlier version of NormConfidenceSequence without a leader.
_OFFSETS = (1, 1.03125, 1.125, 1.5, 3, 9, 33)
_OFFSET_WEIGHTS = (0.75, *(0.25 * 0.7 ** np.arange(6) / np.sum(0.7 ** np.arange(6))))


def all_in(samples: Array, means: Array, alpha: float) -> Array:
    """β = 1 always: (1 + X) / (1 + m)."""
    return _log_capital(1.0, samples, means)


def plug_in(samples: Array, means: Array, alpha: float) -> Array:
    """The empirical-Bernstein bound's plug-in bets, as capital ([WSR] "hedged capital", one-sided, β ≤ 1/2)."""
    rate = _bernstein_rate(samples, alpha)[..., None]
    return _log_capital(np.minimum(rate * _unit(means), _CAUTION), samples, means)


def empirical_bernstein(samples: Array, means: Array, alpha: float) -> Array:
    """The plug-in empirical-Bernstein confidence sequence ([WSR] "PrPl-EB"), whose bound has a closed form."""
    rate = np.minimum(_bernstein_rate(samples, alpha), _CAUTION)
    centre, _ = _past_moments(samples)
    price = (-np.log1p(-rate) - rate) * (_unit(samples) - centre) ** 2
    gain = rate[..., None] * (_unit(samples)[..., None] - _unit(means))
    return np.asarray(np.cumsum(gain - price[..., None], axis=0))


def growth_rate_optimal(samples: Array, means: Array, alpha: float) -> Array:
    """aGRAPA, the bet of largest growth for the mean and variance so far ([WSR] appendix B, β ≤ 1/2)."""
    return _log_capital(_agrapa(samples, means, _CAUTION), samples, means)


def bold_growth_rate_optimal(samples: Array, means: Array, alpha: float) -> Array:
    """aGRAPA with β ≤ 1."""
    return _log_capital(_agrapa(samples, means, 1.0), samples, means)


def online_newton(samples: Array, means: Array, alpha: float) -> Array:
    """Online Newton step on the logarithm of the capital ([WSR] appendix B, "ONS-m", β ≤ 1/2)."""
    unit, candidates = _unit(samples), _unit(means)
    result = np.empty((*samples.shape, means.shape[1]))
    stake, curvature, log_capital = (np.full(means.shape, start) for start in (0.0, 1.0, 0.0))
    for i, sample in enumerate(unit):
        surprise = sample[:, None] - candidates
        factor = 1 + stake * surprise
        log_capital += np.log(factor)
        result[i] = log_capital
        gradient = surprise / factor
        curvature += gradient**2
        stake = np.clip(stake + 2 / (2 - np.log(3)) * gradient / curvature, 0, _CAUTION / candidates)
    return result


def hedged_grid(samples: Array, means: Array, alpha: float) -> Array:
    """Equal shares of the capital on constant bets β = 1/11 … 10/11 ("dKelly", [WSR] appendix B)."""
    parts = np.arange(1, _GRID_NODES + 1) / (_GRID_NODES + 1)
    return _mixture([(1 / _GRID_NODES, part) for part in parts], samples, means)


def universal_portfolio(samples: Array, means: Array, alpha: float) -> Array:
    """Cover's portfolio with the prior Beta(1/2, 1/2) on β ([OJ]; [RB]), at the nodes of its Gaussian quadrature."""
    angles = (np.arange(_PORTFOLIO_NODES) + 0.5) * np.pi / _PORTFOLIO_NODES
    return _mixture([(1 / _PORTFOLIO_NODES, part) for part in (1 + np.cos(angles)) / 2], samples, means)


def all_in_and_portfolio(samples: Array, means: Array, alpha: float) -> Array:
    """Half of the capital all in, half in the universal portfolio."""
    return _halves(all_in, universal_portfolio, samples, means, alpha)


def all_in_and_growth_rate_optimal(samples: Array, means: Array, alpha: float) -> Array:
    """Half of the capital all in, half in aGRAPA (β ≤ 1/2)."""
    return _halves(all_in, growth_rate_optimal, samples, means, alpha)


def offset_mixture(samples: Array, means: Array, alpha: float) -> Array:
    """Three quarters all in, the rest on six constant bets λ = 1 / (b + m), whose state needs no grid over m."""
    parts = [(weight, (1 + means) / (b + means)) for weight, b in zip(_OFFSET_WEIGHTS, _OFFSETS, strict=True)]
    return _mixture(parts, samples, means)


DEPENDENT_ON_ALPHA: tuple[Scheme, ...] = (plug_in, empirical_bernstein)  # the others bet the same for every α


def _unit(values: Array) -> Array:
    """Maps [-1, 1] to [0, 1], the range in the literature."""
    return (1 + values) / 2


def _past_moments(samples: Array) -> tuple[Array, Array]:
    """Mean and variance in [0, 1], both ``(n, streams)``, of the samples before each, with [WSR]'s pseudo-sample."""
    unit = _unit(samples)
    count = np.arange(1, len(unit) + 1)[:, None]
    mean = (0.5 + np.cumsum(unit, axis=0)) / (count + 1)
    variance = (0.25 + np.cumsum((unit - mean) ** 2, axis=0)) / (count + 1)
    first = np.ones((1, unit.shape[1]))
    return np.concatenate([0.5 * first, mean[:-1]]), np.concatenate([0.25 * first, variance[:-1]])


def _bernstein_rate(samples: Array, alpha: float) -> Array:
    """λ for samples in [0, 1], before the limit: ``(n, streams)``."""
    count = np.arange(1, len(samples) + 1)[:, None]
    variance = _past_moments(samples)[1]
    return np.asarray(np.sqrt(2 * np.log(1 / alpha) / (variance * count * np.log1p(count))))


def _agrapa(samples: Array, means: Array, most: float) -> Array:
    centre, variance = _past_moments(samples)
    candidates = _unit(means)
    edge = centre[..., None] - candidates
    return np.clip(candidates * edge / (variance[..., None] + edge**2), 0, most)


def _log_capital(stake: float | Array, samples: Array, means: Array) -> Array:
    """Log capital of the stakes β, which are broadcast to ``(n, streams, candidates)``."""
    with np.errstate(divide="ignore"):  # all is lost at β = 1, X = -1
        gains: Array = np.log1p(stake * ((1 + samples)[..., None] / (1 + means) - 1))
    return np.cumsum(gains, axis=0)


def _mixture(parts: Sequence[tuple[float, float | Array]], samples: Array, means: Array) -> Array:
    """Log capital of fixed stakes, as pairs of weight and β."""
    total = np.full((*samples.shape, means.shape[1]), -np.inf)
    for weight, part in parts:
        np.logaddexp(total, np.log(weight) + _log_capital(part, samples, means), out=total)
    return total


def _halves(first: Scheme, second: Scheme, samples: Array, means: Array, alpha: float) -> Array:
    return np.asarray(np.logaddexp(first(samples, means, alpha), second(samples, means, alpha)) - np.log(2))
