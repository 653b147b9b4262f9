"""The circuit breaker of one server. It does no I/O and reads no clock: callers pass the time."""

from __future__ import annotations

from typing import Literal

BreakerState = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Opens after consecutive failures. After a pause it lets one trial through; each failed trial doubles the pause.

    All times are seconds of one monotonic clock. While the breaker is open, it ignores the results of requests that
    were sent before it opened: only the pause decides when the server is tried again.

    Args:
        threshold: Failures in a row that open it.
        pause: Seconds before the first trial.
        max_pause: Longest pause, where doubling stops.
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
        """The state now. It is ``half_open`` from the end of the pause until a trial request succeeds or fails."""
        if self._opened is None:
            return "closed"
        return "half_open" if now >= self._opened + self._pause else "open"

    def allows(self, now: float) -> bool:
        """Whether a request may be sent now."""
        state = self.state(now)
        return state == "closed" or (state == "half_open" and not self._trial)

    def record_start(self, now: float) -> None:
        """Notes that a request was sent."""
        if self.state(now) == "half_open":
            self._trial = True

    def record_success(self, now: float) -> None:
        """Notes that a request was answered."""
        if self.state(now) == "open":
            return
        self._failures = 0
        self._pause = self._first_pause
        self._opened = None
        self._trial = False

    def record_failure(self, now: float) -> None:
        """Notes that a request failed because of the server."""
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
        """Notes that a request ended without saying anything about the server, for example when its client left."""
        self._trial = False
