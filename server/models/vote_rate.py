"""How fast a model's votes are of late, and how many are to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_HALF_LIFE = 60.0  # seconds of voting after which a vote weighs half


class VoteRate:
    """Counts the votes of all requests to one model.

    Args:
        clock: Seconds, which never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: list[Callable[[], int]] = []
        self._votes = 0.0
        self._seconds = 0.0
        self._last = clock()

    @property
    def waiting(self) -> int:
        """Copies that requests under way may still ask about, at most."""
        return sum(copies_left() for copies_left in self._running)

    @property
    def per_second(self) -> float | None:
        """Votes a second while there were any to count, of all requests together; None before the first."""
        return self._votes / self._seconds if self._votes and self._seconds else None

    @contextmanager
    def running(self, copies_left: Callable[[], int]) -> Iterator[None]:
        """While one request is voted on.

        Args:
            copies_left: Tells how many copies it may still ask about.
        """
        self._advance()
        self._running.append(copies_left)
        try:
            yield
        finally:
            self._advance()
            self._running.remove(copies_left)

    def count(self) -> None:
        """Counts a vote."""
        self._advance()
        self._votes += 1

    def _advance(self) -> None:
        """Time without votes under way does not count, and does not let older ones fade."""
        now = self._clock()
        elapsed, self._last = now - self._last, now
        if self._running:
            kept = 0.5 ** (elapsed / _HALF_LIFE)
            self._votes *= kept
            self._seconds = self._seconds * kept + elapsed
