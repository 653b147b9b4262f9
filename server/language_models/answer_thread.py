"""A worker thread that generates one answer at a time, with a bounded queue."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from server.errors import ApiError, shutting_down

T = TypeVar("T")


class AnswerThread:
    """Generates one answer at a time, without waiting for the client, so that slow readers do not block others.

    Its methods must be called on the event loop.

    Args:
        max_pending: Most answers that may run or wait at once.
    """

    def __init__(self, max_pending: int) -> None:
        self._max_pending = max_pending
        self._closed = False
        self._pending: set[threading.Event] = set()  # setting one ends its answer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="language-model")

    def admit(self) -> None:
        """Returns if another answer may start or wait.

        Raises:
            ApiError: 429 if too many are pending, 503 after :meth:`close`.
        """
        if self._closed:
            raise shutting_down()
        if len(self._pending) >= self._max_pending:
            raise ApiError(
                429,
                "too many requests are waiting for the language model; try again later",
                code="overloaded",
                headers={"retry-after": "1"},
            )

    async def pieces(
        self, make: Callable[[threading.Event], Iterator[T]], *, admitted: bool = False
    ) -> AsyncGenerator[T, None]:
        """Generates an answer on the thread. It counts as pending until the thread is done with it.

        Args:
            make: Generates the pieces on the thread. It must end early once the event is set, which happens when this
                generator is closed.
            admitted: Whether it is a further part of something that was admitted, and has its place.

        Yields:
            What ``make`` yields.

        Raises:
            ApiError: As :meth:`admit`, or 503 if :meth:`close` ended the answer.
            Exception: Whatever ``make`` raises.
        """
        if not admitted:
            self.admit()
        elif self._closed:
            raise shutting_down()
        ended = threading.Event()
        self._pending.add(ended)
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[T | Exception | None] = asyncio.Queue()  # None marks the end of the answer

        def work() -> None:
            last: Exception | None = None
            try:
                for piece in make(ended):
                    loop.call_soon_threadsafe(made.put_nowait, piece)
            except Exception as error:
                last = error
            loop.call_soon_threadsafe(finish, last)

        def finish(last: Exception | None) -> None:
            self._pending.discard(ended)
            made.put_nowait(last)

        def on_done(job: Future[None]) -> None:
            if job.cancelled():  # before it started, so work() never ran
                loop.call_soon_threadsafe(finish, None)

        job = self._thread.submit(work)
        job.add_done_callback(on_done)
        try:
            while (piece := await made.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            if ended.is_set():
                raise shutting_down()
        finally:
            ended.set()
            job.cancel()  # if it is still waiting

    async def close(self) -> None:
        """Ends all answers."""
        self._closed = True
        for ended in self._pending:
            ended.set()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)
