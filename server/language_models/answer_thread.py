"""The thread on which answers are made one after the other, and the places of those that wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from server.errors import ApiError, shutting_down

T = TypeVar("T")


class AnswerThread:
    """Makes one answer at a time, to its end: who reads slowly holds up nobody else.

    Its methods are for the event loop.

    Args:
        most: Answers that may be under way, or wait, at once.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._closed = False
        self._places: set[threading.Event] = set()  # each ends its answer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="language-model")

    def admit(self) -> None:
        """Returns if there is a place for one more.

        Raises:
            ApiError: 429 if there is none, 503 after :meth:`close`.
        """
        if self._closed:
            raise shutting_down()
        if len(self._places) >= self._most:
            raise ApiError(
                429,
                "the language model has as many answers to make as may wait for it; try again later",
                code="overloaded",
                headers={"retry-after": "1"},
            )

    async def pieces(self, make: Callable[[threading.Event], Iterator[T]]) -> AsyncGenerator[T, None]:
        """Takes a place before anything else, and gives it back when the thread is done with the answer.

        Args:
            make: Makes the pieces, on the thread; ends early once the event is set, which closing the generator does.

        Yields:
            What ``make`` yields.

        Raises:
            ApiError: As :meth:`admit`, or 503: the answer was ended by :meth:`close`. And what ``make`` raises.
        """
        self.admit()
        ended = threading.Event()
        self._places.add(ended)
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[T | Exception | None] = asyncio.Queue()  # as long as an answer at most; None ends it

        def work() -> None:
            last: Exception | None = None
            try:
                for piece in make(ended):
                    loop.call_soon_threadsafe(made.put_nowait, piece)
            except Exception as error:
                last = error
            loop.call_soon_threadsafe(finish, last)

        def finish(last: Exception | None) -> None:
            self._places.discard(ended)
            made.put_nowait(last)

        def left_out(job: Future[None]) -> None:
            if job.cancelled():  # before it began
                loop.call_soon_threadsafe(finish, None)

        job = self._thread.submit(work)
        job.add_done_callback(left_out)
        try:
            while (piece := await made.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            if ended.is_set():
                raise shutting_down()
        finally:
            ended.set()
            job.cancel()  # where it still waits

    async def close(self) -> None:
        """Ends all answers."""
        self._closed = True
        for ended in self._places:
            ended.set()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)
