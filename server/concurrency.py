"""Time limits that can be ended together, and work that may take minutes beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar


class TimeoutGroup:
    """Waits that are under way, to be ended at once when what they wait for will not come.

    All times are those of the running loop, whose clock is monotonic.
    """

    def __init__(self) -> None:
        self._under_way: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def timeout_at(self, when: float | None = None) -> AsyncIterator[None]:
        """Limits the block; do not yield inside it.

        Raises:
            TimeoutError: The time is over, or :meth:`expire` was called.
        """
        limit = asyncio.timeout_at(when)
        try:
            async with limit:
                self._under_way.add(limit)
                yield
        finally:
            self._under_way.discard(limit)

    def expire(self) -> None:
        """Ends all waits that are under way."""
        now = asyncio.get_running_loop().time()
        for limit in self._under_way:
            if not limit.expired():
                limit.reschedule(now)


T = TypeVar("T")


async def run_on_daemon_thread(call: Callable[[], T]) -> T:
    """Runs ``call`` on a thread of its own, which does not keep the process from ending, as pools of threads do."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:
            tell(_fail, done, error)
        else:
            tell(_succeed, done, result)

    def tell(how: Callable[..., None], *what: object) -> None:
        with suppress(RuntimeError):  # the loop is gone, and nobody waits
            loop.call_soon_threadsafe(how, *what)

    threading.Thread(target=run, name="load", daemon=True).start()
    return await done


def _succeed(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[T], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
