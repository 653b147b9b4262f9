"""What the device can take: the size of a batch, and the rate of work. Pure code."""

from __future__ import annotations

_RECOVER_AFTER = 64
_RECOVER_AFTER_AT_MOST = 4096
_STEPS = 8  # from nothing back to the full size


class BatchBudget:
    """Tokens of one batch: halved where memory runs out, and regained slowly.

    After 64 batches that went well the budget grows again by an eighth of the full one. Where memory then runs out once
    more, that number doubles, so that a device which is too small for good is rarely asked again.

    Args:
        full: The configured size.
    """

    def __init__(self, full: int) -> None:
        self.full = full
        self.current = full
        self._calm = 0
        self._regained = False
        self._recover_after = _RECOVER_AFTER

    def out_of_memory(self, tokens: int) -> None:
        """A batch of so many tokens did not fit."""
        if self._regained:
            self._recover_after = min(2 * self._recover_after, _RECOVER_AFTER_AT_MOST)
        self._regained = False
        self.current = max(1, min(self.current, tokens) // 2)
        self._calm = 0

    def fitted(self, tokens: int) -> None:
        """A batch of so many tokens went well; small ones say nothing about larger ones."""
        if self.current == self.full or 2 * tokens < self.current:
            return
        self._calm += 1
        if self._calm >= self._recover_after:
            self._calm = 0
            self._regained = True
            self.current = min(self.full, self.current + -(-self.full // _STEPS))


class Rate:
    """Tokens per second, a mean in which the latest batches weigh most, each by its size."""

    _KEPT = 0.9

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0

    def measured(self, tokens: int, seconds: float) -> None:
        """Takes in one batch."""
        self._tokens = self._KEPT * self._tokens + tokens
        self._seconds = self._KEPT * self._seconds + seconds

    def seconds(self, tokens: int) -> float | None:
        """Time that so many tokens take; None before anything was measured."""
        if self._tokens <= 0 or self._seconds <= 0:
            return None
        return tokens * self._seconds / self._tokens
