"""What can become of a request, other than a result."""

from __future__ import annotations


class EngineClosedError(RuntimeError):
    """The engine no longer takes work."""


class DeviceLostError(EngineClosedError):
    """The device computes nothing any more for this process, which must be started again."""


class EngineOverloadedError(RuntimeError):
    """The queue is full; the caller should try again later.

    Attributes:
        estimated_wait: Seconds until what waits is done, as far as the rate is known; None before it is.
    """

    def __init__(self, message: str, estimated_wait: float | None = None) -> None:
        super().__init__(message)
        self.estimated_wait = estimated_wait


class DeadlineUnreachableError(EngineOverloadedError):
    """The request cannot be done within its timeout, so it was not begun."""


class DeadlineExceededError(RuntimeError):
    """The request's timeout passed before it was done; no more is drawn for it."""


class SmoothingError(RuntimeError):
    """The pass failed for this image."""
