"""One image's noisy copies on their way from the thread that draws them to whoever asks a model about each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Payload = dict[str, NDArray[np.generic]]
"""From :meth:`VisionEncoder.payload`."""

_LEAST_ALIVE = 8  # copies of each image that there is room for in any case, so that no image waits for another


class CopyBudget:
    """Bytes that copies may take at once, of all images of an engine together.

    Args:
        max_bytes: Above it copies are drawn only for images that have hardly any.
        changed: Guards it, and all :class:`Copies` of the engine.

    Attributes:
        used: Bytes of the copies that are alive.
        copy_bytes: Of one copy, of the image that was begun last; None before any.
    """

    def __init__(self, max_bytes: int, changed: threading.Condition) -> None:
        self.max_bytes = max_bytes
        self.changed = changed
        self.used = 0
        self.copy_bytes: int | None = None


class Copies:
    """The copies of one image, in the order in which they were drawn.

    The engine draws no more than the reader wants and there is room for. A copy takes room until the reader is done
    with it. Safe for threads.

    Args:
        notify: Called, on any thread, when there may be something to :meth:`take`, and at the end.

    Attributes:
        spectral_norm: ‖A‖₂ from the image as sent to the encoder's; 0 before the first copy.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self.spectral_norm = 0.0
        self._budget: CopyBudget | None = None
        self._ready: deque[Payload] = deque()
        self._wanted = 0
        self._drawn = 0
        self._alive = 0
        self._bytes = 0  # of one copy; 0 until one is there
        self._stopped = False
        self._let_go = False
        self._ended = False

    # --- the reader's side ---------------------------------------------------------------------------------------

    def want(self, count: int) -> None:
        """Lets the engine draw so many copies in all, where it had fewer to draw."""
        self._wanted = max(self._wanted, count)
        self._wake()

    def take(self, most: int) -> list[Payload]:
        """The next copies that are there, at most so many. Call :meth:`release` when done with them."""
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def release(self, count: int) -> None:
        """Makes room for as many copies."""
        if self._budget is None:
            return
        with self._budget.changed:
            count = min(count, self._alive)
            self._alive -= count
            self._budget.used -= count * self._bytes
        self._wake()

    def stop(self) -> None:
        """Ends the drawing: the image's result is that of the copies so far."""
        self._stopped = True
        self._wake()

    def let_go(self) -> None:
        """Wants no further copy, while the drawing goes on for the image's certificate."""
        self._let_go = True
        self._ready.clear()
        self._wake()

    def close(self) -> None:
        """Gives up all room, and ends the drawing if it was not let go; call it at last, whatever happened."""
        if self._budget is None:
            self._stopped = True
            return
        with self._budget.changed:
            self._stopped = self._stopped or not self._let_go
            self._ready.clear()
            self.release(self._alive)

    @property
    def ready(self) -> int:
        """Copies that can be taken."""
        return len(self._ready)

    @property
    def ended(self) -> bool:
        """Whether no further copy will come: all are drawn, or drawing failed or was given up."""
        return self._ended

    # --- the engine's side, with ``changed`` held ----------------------------------------------------------------

    def attach(self, budget: CopyBudget, spectral_norm: float) -> None:
        """Connects them to an engine, before it draws any."""
        self._budget, self.spectral_norm = budget, spectral_norm

    @property
    def stopped(self) -> bool:
        """Whether the reader wants no more."""
        return self._stopped

    @property
    def is_let_go(self) -> bool:
        """Whether samples are drawn that nobody takes."""
        return self._let_go

    @property
    def room(self) -> int:
        """Copies that may be drawn now."""
        if self._stopped or self._budget is None:
            return 0
        free = _LEAST_ALIVE - self._alive
        if self._bytes:
            free = max(free, (self._budget.max_bytes - self._budget.used) // self._bytes)
        return max(0, min(free, self._wanted - self._drawn))

    def put(self, payloads: Sequence[Payload]) -> None:
        """Adds copies that were drawn."""
        if not payloads or self._budget is None:
            return
        with self._budget.changed:
            if self._stopped or self._let_go:  # nobody takes them any more
                return
            if not self._bytes:
                self._bytes = max(1, sum(array.nbytes for array in payloads[0].values()))
                self._budget.copy_bytes = self._bytes
            self._drawn += len(payloads)
            self._alive += len(payloads)
            self._budget.used += len(payloads) * self._bytes
            self._ready.extend(payloads)
        self._notify()

    def end(self) -> None:
        """Says that no further copy comes."""
        self._ended = True
        self._notify()

    def _wake(self) -> None:
        if self._budget is not None:
            with self._budget.changed:
                self._budget.changed.notify_all()
