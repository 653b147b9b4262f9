"""Waiting for a place at a server: bounded in time and in number, first come, first served."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from server.language_models.vllm.pool import Pool, Server
from server.language_models.vllm.retries import Wanted


class NoServerError(Exception):
    """No healthy server is left that this request may go to."""


class NoPlaceError(Exception):
    """All servers are full, and so is the queue (``queue_full``), or no place became free in time (``no_place``)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(eq=False, slots=True)
class _Waiting:
    wanted: Wanted
    place: asyncio.Future[Server]


class Places:
    """Hands out the places of a pool.

    Args:
        pool: The servers.
        most_waiting: Requests that may wait at once.
        longest_wait: Seconds that one may wait.
    """

    def __init__(self, pool: Pool, most_waiting: int, longest_wait: float) -> None:
        self._pool = pool
        self._most_waiting = most_waiting
        self._longest_wait = longest_wait
        self._queue: deque[_Waiting] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether a further request would be turned away at once."""
        return len(self._queue) >= self._most_waiting and not any(
            server.in_flight < server.limit for server in self._pool.candidates(time.monotonic())
        )

    async def take(self, wanted: Wanted) -> Server:
        """Takes a place, waiting for it if need be. Give it back with :meth:`give_back`.

        Raises:
            NoServerError: There is nothing to wait for.
            NoPlaceError: Too many wait, or the wait was too long.
        """
        if not self._pool.candidates(time.monotonic(), wanted.avoid, wanted.exclude):
            raise NoServerError
        if not self._queue and (server := self._pick(wanted)) is not None:
            return server
        if len(self._queue) >= self._most_waiting:
            raise NoPlaceError("queue_full")
        waiting = _Waiting(wanted, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        try:
            # Whoever waits behind one that wants another server need not wait with it.
            self.serve_waiting()
            async with asyncio.timeout(self._longest_wait):
                return await asyncio.shield(waiting.place)
        except BaseException as error:
            if waiting.place.done() and not waiting.place.cancelled():  # it came in the very moment of giving up
                self.give_back(waiting.place.result())
            if isinstance(error, TimeoutError):
                raise NoPlaceError("no_place") from None
            raise
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)

    def give_back(self, server: Server) -> None:
        """Gives a place back; whoever waits for it gets it."""
        self._pool.release(server)
        self.serve_waiting()

    def serve_waiting(self) -> None:
        """Gives free places to those that wait. To be called when a server has become healthy."""
        for waiting in list(self._queue):
            if (server := self._pick(waiting.wanted)) is not None:
                self._queue.remove(waiting)
                waiting.place.set_result(server)

    def _pick(self, wanted: Wanted) -> Server | None:
        return self._pool.pick(time.monotonic(), wanted.avoid, wanted.exclude)
