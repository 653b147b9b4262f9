"""Estimates with 95% confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binomtest, t

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the ends of its 95% interval."""

    value: float
    low: float
    high: float


def proportion(count: int, total: int) -> Estimate:
    """Share of ``count`` among ``total`` with Wilson's score interval (Wilson 1927).

    Raises:
        ValueError: There are no trials.
    """
    if total < 1:
        raise ValueError("a proportion needs at least one trial")
    interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(count / total, float(interval.low), float(interval.high))


def mean(values: Sequence[float]) -> Estimate:
    """Mean with Student's t interval; a single value has no width.

    Raises:
        ValueError: There are no values.
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    array = np.asarray(values, dtype=np.float64)
    centre = float(array.mean())
    if len(array) == 1:
        return Estimate(centre, centre, centre)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array)))
    return Estimate(centre, centre - half, centre + half)


def share_at_most(count: int, total: int, confidence: float) -> float:
    """Upper confidence bound of a probability, one-sided, by Clopper and Pearson.

    Args:
        count: Times that it happened.
        total: Independent trials.
        confidence: Of the bound, in (0, 1).

    Raises:
        ValueError: There are no trials.

    Example:
        >>> round(share_at_most(0, 1000, 0.999), 5)
        0.00688
    """
    if total < 1:
        raise ValueError("a proportion needs at least one trial")
    return 1.0 if count >= total else float(beta.ppf(confidence, count + 1, total - count))
