"""Work that may take minutes, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


async def on_daemon_thread(call: Callable[[], T]) -> T:
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
