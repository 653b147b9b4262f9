"""Waiting for a place at a server: bounded in time and in number, first come, first served."""

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
    """All servers are full, and so is the queue (``queue_full``), or no place became free in time (``no_place``)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False, slots=True)
class _Waiter:
    preference: ServerPreference
    place: asyncio.Future[Server]


class ServerSlots:
    """Hands out the places of a pool.

    Args:
        pool: The servers.
        max_waiting: Requests that may wait at once.
        max_wait: Seconds that one may wait.
    """

    def __init__(self, pool: Pool, max_waiting: int, max_wait: float) -> None:
        self._pool = pool
        self._max_waiting = max_waiting
        self._max_wait = max_wait
        self._queue: deque[_Waiter] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether a further request would be turned away at once."""
        return len(self._queue) >= self._max_waiting and not any(
            server.in_flight < server.limit for server in self._pool.candidates(time.monotonic())
        )

    async def acquire(self, preference: ServerPreference) -> Server:
        """Takes a place, waiting for it if need be. Give it back with :meth:`release`.

        Raises:
            NoServerError: There is nothing to wait for.
            NoSlotError: Too many wait, or the wait was too long.
        """
        if not self._pool.candidates(time.monotonic(), preference.avoid, preference.exclude):
            raise NoServerError
        if not self._queue and (server := self._pick(preference)) is not None:
            return server
        if len(self._queue) >= self._max_waiting:
            raise NoSlotError("queue_full")
        waiting = _Waiter(preference, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        try:
            # Whoever waits behind one that wants another server need not wait with it.
            self.assign_free_slots()
            async with asyncio.timeout(self._max_wait):
                return await asyncio.shield(waiting.place)
        except BaseException as error:
            if waiting.place.done() and not waiting.place.cancelled():  # it came in the very moment of giving up
                self.release(waiting.place.result())
            if isinstance(error, TimeoutError):
                raise NoSlotError("no_place") from None
            raise
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)

    def release(self, server: Server) -> None:
        """Gives a place back; whoever waits for it gets it."""
        self._pool.release(server)
        self.assign_free_slots()

    def assign_free_slots(self) -> None:
        """Gives free places to those that wait. To be called when a server has become healthy."""
        for waiting in list(self._queue):
            if (server := self._pick(waiting.preference)) is not None:
                self._queue.remove(waiting)
                waiting.place.set_result(server)

    def _pick(self, preference: ServerPreference) -> Server | None:
        return self._pool.pick(time.monotonic(), preference.avoid, preference.exclude)
