"""Estimates with 95% confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, t

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
