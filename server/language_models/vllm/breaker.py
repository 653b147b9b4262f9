"""The circuit breaker of one server: no I/O, and no clock of its own."""

from __future__ import annotations

from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Opens after failures in a row, and lets one request at a time try again after a pause that doubles.

    All times are seconds of one monotonic clock, which the caller reads. What requests report that were sent before the
    breaker opened is not counted while it is open: the pause alone decides when it is tried again.

    Args:
        threshold: Failures in a row that open it.
        pause: Seconds before the first trial.
        max_pause: Where doubling ends.
    """

    def __init__(self, threshold: int = 5, pause: float = 1.0, max_pause: float = 30.0) -> None:
        self._threshold = threshold
        self._first_pause = pause
        self._max_pause = max_pause
        self._failures = 0
        self._pause = pause
        self._opened: float | None = None
        self._trial = False

    def state(self, now: float) -> BreakerState:
        """``half_open`` from the end of the pause until a trial has succeeded or failed."""
        if self._opened is None:
            return "closed"
        return "half_open" if now >= self._opened + self._pause else "open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        state = self.state(now)
        return state == "closed" or (state == "half_open" and not self._trial)

    def record_start(self, now: float) -> None:
        """A request is sent."""
        if self.state(now) == "half_open":
            self._trial = True

    def record_success(self, now: float) -> None:
        """A request was answered."""
        if self.state(now) == "open":
            return
        self._failures = 0
        self._pause = self._first_pause
        self._opened = None
        self._trial = False

    def record_failure(self, now: float) -> None:
        """A request failed by the server's fault."""
        state = self.state(now)
        if state == "closed":
            self._failures += 1
            if self._failures >= self._threshold:
                self._opened = now
        elif state == "half_open":
            self._opened = now
            self._pause = min(2 * self._pause, self._max_pause)
            self._trial = False

    def record_cancellation(self) -> None:
        """A request ended without telling anything of the server, for example because its client left."""
        self._trial = False
