"""An l2 radius in words: what a change of that size is on a picture of so many pixels."""

from __future__ import annotations

import math

_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 255)  # of 255, in each of a pixel's three colours


def change_in_words(radius: float, pixels: int) -> str:
    """Changes of a picture whose l2 size is at most a radius: one that is spread wide, and one in few pixels.

    A change by k/255 in each of the three colours of m pixels has the size √(3m) · k/255.

    Args:
        radius: In pixels of [0, 1], on the picture as sent.
        pixels: Of the picture.

    Example:
        >>> change_in_words(0.3, 384 * 384)
        '1/255 in each colour of 1,950 pixels, or 32/255 of 1'
    """
    fitting = [(step, count) for step in _STEPS if 1 <= (count := _pixels_changed(radius, step)) <= pixels]
    if not fitting:
        if _pixels_changed(radius, _STEPS[0]) < 1:
            return "less than 1/255 in each colour of one pixel"
        return "any change of the picture"
    (wide, many), (strong, few) = fitting[0], fitting[-1]
    text = f"{wide}/255 in each colour of {many:,} pixel{'' if many == 1 else 's'}"
    return text if wide == strong else f"{text}, or {strong}/255 of {few:,}"


def _pixels_changed(radius: float, step: int) -> int:
    """The most pixels that may change by this many steps: rounded down, arithmetic included."""
    return math.floor((255 * radius / step) ** 2 / 3 * (1 - 1e-12))
