"""Certified numbers in writing, rounded so that what is written still holds."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


def at_least(bound: float, digits: int = 4) -> str:
    """A lower bound, or a radius that something holds within, rounded down to this many decimals.

    Example:
        >>> at_least(0.99996), at_least(0.25, 2)
        ('0.9999', '0.25')
    """
    return _rounded(bound, digits, ROUND_FLOOR)


def at_most(bound: float, digits: int = 4) -> str:
    """An upper bound, rounded up to this many decimals.

    Example:
        >>> at_most(0.00001)
        '0.0001'
    """
    return _rounded(bound, digits, ROUND_CEILING)


def percent(confidence: float) -> str:
    """A confidence in full: its last digits are what α is.

    Example:
        >>> percent(0.999), percent(1 - 1e-9)
        ('99.9%', '99.9999999%')
    """
    return f"{100 * confidence:.12g}%"


def _rounded(bound: float, digits: int, rounding: str) -> str:
    # From the shortest text that stands for the number: 0.3 itself is not one, and the nearest lies a little below.
    return f"{Decimal(repr(float(bound))).quantize(Decimal(1).scaleb(-digits), rounding):f}"
