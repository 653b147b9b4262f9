"""A bounded FIFO queue of requests that wait for a free slot at a server."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from server.language_models.vllm.pool import Pool, Server
from server.language_models.vllm.retries import ServerPreference


class NoServerError(Exception):
    """No healthy server is left that this request may go to."""


class NoSlotError(Exception):
    """The queue is full (``queue_full``), or no slot became free in time (``no_place``)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False, slots=True)
class _Waiter:
    preference: ServerPreference
    slot: asyncio.Future[Server]


class ServerSlots:
    """Hands out the request slots of a pool's servers.

    Args:
        pool: The servers.
        max_waiting: Most requests that may wait at once.
        max_wait: Seconds that a request may wait.
    """

    def __init__(self, pool: Pool, max_waiting: int, max_wait: float) -> None:
        self._pool = pool
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._queue: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Number of requests that wait now."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether a further request would be rejected at once."""
        return len(self._queue) >= self._max_waiting and not any(
            server.in_flight < server.limit for server in self._pool.candidates(time.monotonic())
        )

    async def acquire(self, preference: ServerPreference) -> Server:
        """Acquires a slot, waiting for one if necessary. Return it with :meth:`release`.

        Raises:
            NoServerError: No server is left to wait for.
            NoSlotError: Too many requests wait, or the wait was too long.
        """
        if not self._pool.candidates(time.monotonic(), preference.avoid, preference.exclude):
            raise NoServerError
        if not self._queue and (server := self._pick(preference)) is not None:
            return server
        if len(self._queue) >= self._max_waiting:
            raise NoSlotError("queue_full")
        waiter = _Waiter(preference, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        try:
            # A free slot may suit this request even if those ahead of it exclude the slot's server.
            self.assign_free_slots()
            async with asyncio.timeout(self._max_wait):
                return await asyncio.shield(waiter.slot)
        except BaseException as error:
            if waiter.slot.done() and not waiter.slot.cancelled():  # assigned just as the wait ended
                self.release(waiter.slot.result())
            if isinstance(error, TimeoutError):
                raise NoSlotError("no_place") from None
            raise
        finally:
            if waiter in self._queue:
                self._queue.remove(waiter)

    def release(self, server: Server) -> None:
        """Returns a slot and passes it to a waiting request."""
        self._pool.release(server)
        self.assign_free_slots()

    def assign_free_slots(self) -> None:
        """Assigns free slots to waiting requests. Call it when a server has become healthy."""
        for waiter in list(self._queue):
            if (server := self._pick(waiter.preference)) is not None:
                self._queue.remove(waiter)
                waiter.slot.set_result(server)

    def _pick(self, preference: ServerPreference) -> Server | None:
        return self._pool.pick(time.monotonic(), preference.avoid, preference.exclude)
