"""Rounds certified numbers to text, in the direction in which the text is still certified."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal


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
