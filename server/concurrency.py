"""Timeouts that can be expired together, and blocking calls on daemon threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar


class TimeoutGroup:
    """A group of timeouts that can be expired at once, for example when a server is lost.

    All times are those of the running loop, whose clock is monotonic.
    """

    def __init__(self) -> None:
        self._active: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def timeout_at(self, when: float | None = None) -> AsyncIterator[None]:
        """Applies a timeout to the block, like :func:`asyncio.timeout_at`; None waits for :meth:`expire` alone.

        Do not yield inside the block.

        Raises:
            TimeoutError: The time is over, or :meth:`expire` was called.
        """
        timeout = asyncio.timeout_at(when)
        try:
            async with timeout:
                self._active.add(timeout)
                yield
        finally:
            self._active.discard(timeout)

    def expire(self) -> None:
        """Expires all active timeouts."""
        now = asyncio.get_running_loop().time()
        for timeout in self._active:
            if not timeout.expired():
                timeout.reschedule(now)


T = TypeVar("T")


async def run_on_daemon_thread(call: Callable[[], T]) -> T:
    """Runs ``call`` on a daemon thread, which, unlike a thread pool, does not keep the process from exiting."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            report(_fail, done, error)
        else:
            report(_succeed, done, result)

    def report(callback: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits for the result
            loop.call_soon_threadsafe(callback, *arguments)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await done


def _succeed(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
