"""The arithmetic of one sliding window: what is left, when it is free again, and how headers say so."""

from __future__ import annotations

import math
from dataclasses import dataclass

WINDOW_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Window:
    """A limit's count: that of the current minute, and that of the minute before as far as it still weighs.

    The weight of the minute before falls from 1 to 0 in the course of the current one. So a tenant gets its limit in
    the long run, at most twice as much within any 60 s (as with a full token bucket), and the count takes no more
    memory for 10,000 samples than for one.

    Attributes:
        limit: Units in a minute.
        previous: Units of the minute before.
        previous_seconds: For how long they still weigh, in [0, 60].
        current: Units of the current minute.
        current_seconds: Until they weigh no more, in [60, 120]; 0 if there are none.
    """

    limit: int
    previous: int
    previous_seconds: float
    current: int
    current_seconds: float

    @property
    def remaining(self) -> int:
        """Units that may be taken now, in [0, limit]."""
        used = math.floor(self.previous * self.previous_seconds / WINDOW_SECONDS + self.current)
        return min(self.limit, max(0, self.limit - used))

    @property
    def reset_seconds(self) -> float:
        """Time until all units are there again, if none is taken."""
        if self.current > 0:
            return self.current_seconds
        return self.previous_seconds if self.previous > 0 else 0.0

    def seconds_until(self, cost: int) -> float:
        """Time until ``cost`` units may be taken, if no others are; infinite if ``cost`` is above the limit."""
        if cost > self.limit:
            return math.inf
        if cost <= self.remaining:
            return 0.0
        free = self.limit - cost + 1  # the count is rounded down, so anything below this many used units will do
        if self.current < free and self.previous > 0:
            return max(0.0, self.previous_seconds - WINDOW_SECONDS * (free - self.current) / self.previous)
        to_end = max(0.0, self.current_seconds - WINDOW_SECONDS)
        weighs = WINDOW_SECONDS * (1 - free / self.current) if self.current > 0 else 0.0
        return to_end + max(0.0, weighs)


def rate_limit_headers(name: str, window: Window) -> dict[str, str]:
    """OpenAI's headers for one limit: ``requests``, ``images`` or ``samples``."""
    return {
        f"x-ratelimit-limit-{name}": str(window.limit),
        f"x-ratelimit-remaining-{name}": str(window.remaining),
        f"x-ratelimit-reset-{name}": format_duration(window.reset_seconds),
    }


def format_duration(seconds: float) -> str:
    """As OpenAI writes it: ``0s``, ``1.5s``, ``1m30s``."""
    tenths = math.ceil(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    return f"{f'{minutes}m' if minutes else ''}{tenths / 10:g}s"
