"""The learning rate's course."""

from __future__ import annotations

import math


def warm_cosine(step: int, steps: int) -> float:
    """Part of the peak learning rate: up over the first twentieth (at most 200 steps), then a cosine down."""
    rise = max(1, min(200, steps // 20))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
