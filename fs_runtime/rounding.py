"""Rounds certified numbers in the direction in which they are still certified: shares of α, and numbers in writing."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def alpha_of(confidence: float) -> float:
    """α = 1 - confidence, or just below it; exact from 1/2 on."""
    alpha = 1 - confidence
    return alpha if confidence >= 0.5 else math.nextafter(alpha, 0)


def confidence_of(alpha: float) -> float:
    """1 - α, or just above it: the nearest double may leave out more than α.

    Example:
        >>> share = alpha_of(0.999) / 2
        >>> 1 - confidence_of(share) <= share
        True
    """
    confidence = 1 - alpha
    return confidence if 1 - confidence <= alpha else math.nextafter(confidence, 1)


def at_least(bound: float, digits: int = 4) -> str:
    """A lower bound, or a certified radius, as text: rounded down to this many decimals.

    Example:
        >>> at_least(0.99996), at_least(0.25, 2)
        ('0.9999', '0.25')
    """
    return _rounded(bound, digits, ROUND_FLOOR)


def at_most(bound: float, digits: int = 4) -> str:
    """An upper bound as text: rounded up to this many decimals.

    Example:
        >>> at_most(0.00001)
        '0.0001'
    """
    return _rounded(bound, digits, ROUND_CEILING)


def percent(confidence: float) -> str:
    """A confidence in percent, with all digits: α is in the last ones.

    Example:
        >>> percent(0.999), percent(1 - 1e-9)
        ('99.9%', '99.9999999%')
    """
    return f"{100 * confidence:.12g}%"


def _rounded(bound: float, digits: int, rounding: str) -> str:
    # Rounds the float's shortest decimal text: the float nearest to 0.3 is a little smaller, and must not give 0.2999.
    return f"{Decimal(repr(float(bound))).quantize(Decimal(1).scaleb(-digits), rounding):f}"
