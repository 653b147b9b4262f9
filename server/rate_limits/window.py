"""Arithmetic of a sliding window counter: units left, waiting times, and the response headers."""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Window:
    """The count of one limit: the current minute plus a weighted share of the previous one.

    The weight of the previous minute falls from 1 to 0 during the current one. So a tenant gets its limit in the long
    run and at most twice as much within any 60 s (as with a full token bucket), with constant memory.

    Attributes:
        limit: Units in a minute.
        previous: Units of the previous minute.
        previous_seconds: Seconds until they no longer count, in [0, 60].
        current: Units of the current minute.
        current_seconds: Seconds until they no longer count, in [60, 120]; 0 if there are none.
    """

    limit: int
    previous: int
    previous_seconds: float
    current: int
    current_seconds: float

    @property
    def remaining(self) -> int:
        """Units that are available now, in [0, limit]."""
        used = math.floor(self.previous * self.previous_seconds / WINDOW_SECONDS + self.current)
        return min(self.limit, max(0, self.limit - used))

    @property
    def reset_seconds(self) -> float:
        """Seconds until all units are available again, if none are used meanwhile."""
        if self.current > 0:
            return self.current_seconds
        return self.previous_seconds if self.previous > 0 else 0.0

    def seconds_until(self, cost: int) -> float:
        """Seconds until ``cost`` units are available, if none are used meanwhile; infinite above the limit."""
        if cost > self.limit:
            return math.inf
        if cost <= self.remaining:
            return 0.0
        free = self.limit - cost + 1  # usage is rounded down, so it must only fall below this
        if self.current < free and self.previous > 0:
            return max(0.0, self.previous_seconds - WINDOW_SECONDS * (free - self.current) / self.previous)
        to_end = max(0.0, self.current_seconds - WINDOW_SECONDS)
        weighs = WINDOW_SECONDS * (1 - free / self.current) if self.current > 0 else 0.0
        return to_end + max(0.0, weighs)


def rate_limit_headers(name: str, window: Window) -> dict[str, str]:
    """OpenAI's headers for one limit: ``requests``, ``images``, ``samples`` or ``votes``."""
    return {
        f"x-ratelimit-limit-{name}": str(window.limit),
        f"x-ratelimit-remaining-{name}": str(window.remaining),
        f"x-ratelimit-reset-{name}": format_duration(window.reset_seconds),
    }


def format_duration(seconds: float) -> str:
    """Formats seconds as OpenAI does: ``0s``, ``1.5s``, ``1m30s``."""
    tenths = math.ceil(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    return f"{f'{minutes}m' if minutes else ''}{tenths / 10:g}s"
