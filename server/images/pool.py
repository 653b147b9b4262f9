"""A bounded pool of decoder processes with a time limit.

Processes and not threads, because a decoder may crash or be exploited by the file that it reads: then only a process
without keys, files or network is lost, not the gateway. And only a process can be stopped in the middle of a decode.
docs/operations.md has the cost.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import structlog
from numpy.typing import NDArray

from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits
from server.images.process import DecoderDiedError, DecoderProcess

log = structlog.get_logger("server.images")

# Images that may wait for each process; each holds its file in memory.
_WAITING_PER_PROCESS = 64


class DecodersBusyError(Exception):
    """Too many images are waiting to be decoded."""


class DecodePool:
    """Decodes images in up to ``processes`` processes, started when they are first needed.

    Args:
        processes: Most images that are decoded at once.
        seconds: Time limit of one decode; a process that exceeds it is killed and replaced.
    """

    def __init__(self, processes: int, seconds: float) -> None:
        self._seconds = seconds
        self._max_pending = processes * (1 + _WAITING_PER_PROCESS)
        self._pending = 0
        # Each thread does nothing but wait for a process.
        self._threads = ThreadPoolExecutor(processes, thread_name_prefix="image-decode")
        self._idle: queue.LifoQueue[DecoderProcess | None] = queue.LifoQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._busy: set[DecoderProcess] = set()
        self._closing = False
        self._lock = threading.Lock()  # guards _busy and _closing
        self.replaced = 0

    @property
    def pids(self) -> list[int]:
        """Process ids of the idle processes."""
        return [process.pid for process in self._idle.queue if process is not None]

    async def start(self) -> None:
        """Starts the first process.

        Raises:
            DecoderDiedError: It does not start.
        """
        await asyncio.get_running_loop().run_in_executor(self._threads, self._start_first)

    async def decode(self, data: bytes, limits: ImageLimits) -> NDArray[np.uint8]:
        """Decodes one file to ``(H, W, 3)`` uint8 in a decoder process, with :func:`server.images.decode.decode_image`.

        Raises:
            ImageFaultError: It cannot be decoded, or not in time.
            DecodersBusyError: Too many images are waiting.
            DecoderDiedError: No process can be started, or the pool is closed.
        """
        if len(data) > limits.max_bytes:
            raise ImageFaultError(Fault.TOO_MANY_BYTES)
        if self._pending >= self._max_pending:
            raise DecodersBusyError
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._decode, data, limits)
        finally:
            self._pending -= 1

    async def close(self) -> None:
        """Kills all processes."""
        with self._lock:
            self._closing = True
            for busy in self._busy:
                busy.kill()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        while not self._idle.empty():
            if (process := self._idle.get()) is not None:
                process.close()

    def _start_first(self) -> None:
        process = self._idle.get() or DecoderProcess()
        self._idle.put(process)

    def _decode(self, data: bytes, limits: ImageLimits) -> NDArray[np.uint8]:
        process = self._idle.get()  # never waits: there are as many entries as threads
        try:
            # A process may also die for another reason, such as a lack of memory, so the image gets a second attempt.
            for _ in range(2):
                if process is None:
                    process = DecoderProcess()
                try:
                    with self._marked_busy(process):
                        return process.decode(data, limits, self._seconds)
                except TimeoutError:
                    self._discard(process, "timeout")
                    process = None
                    raise ImageFaultError(Fault.TOO_SLOW) from None
                except DecoderDiedError:
                    if self._closing:
                        process.close()
                        process = None
                        raise
                    self._discard(process, "died")
                    process = None
            raise ImageFaultError(Fault.DAMAGED)
        finally:
            self._idle.put(process)

    @contextmanager
    def _marked_busy(self, process: DecoderProcess) -> Iterator[None]:
        """Marks a process as busy, so that :meth:`close` can kill it."""
        with self._lock:
            if self._closing:
                raise DecoderDiedError("the pool is closed")
            self._busy.add(process)
        try:
            yield
        finally:
            with self._lock:
                self._busy.remove(process)

    def _discard(self, process: DecoderProcess, reason: str) -> None:
        process.close()
        self.replaced += 1
        log.warning("image decoder replaced", reason=reason)
