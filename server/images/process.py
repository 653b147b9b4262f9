"""The parent's side of one decoder process: starts it, sends files, and kills it when it takes too long."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import numpy as np
from numpy.typing import NDArray

from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits
from server.images.protocol import READY, REPLY, REQUEST, receive_into

_START_SECONDS = 60.0


class DecoderDiedError(Exception):
    """The process ended, or sent an invalid reply."""


class DecoderProcess:
    """A running ``server.images.worker``. Only :meth:`kill` is thread-safe.

    Raises:
        DecoderDiedError: It did not start.
    """

    def __init__(self) -> None:
        self._connection, child_end = socket.socketpair()
        with child_end:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-P", "-m", "server.images.worker", str(child_end.fileno())],
                pass_fds=[child_end.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # so that Ctrl-C reaches the gateway alone
            )
        ready = bytearray(len(READY))
        try:
            started = receive_into(self._connection, memoryview(ready), time.monotonic() + _START_SECONDS)
        except OSError:
            started = False
        if not started or ready != READY:
            self.close()
            raise DecoderDiedError("the image decoder did not start")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def decode(self, data: bytes, limits: ImageLimits, seconds: float) -> NDArray[np.uint8]:
        """Decodes one file, ``(H, W, 3)`` uint8. After other errors than ImageFaultError, close the process.

        Raises:
            ImageFaultError: The file cannot be decoded.
            TimeoutError: It took longer than ``seconds``.
            DecoderDiedError: The process died.
        """
        deadline = time.monotonic() + seconds
        reply = bytearray(REPLY.size)
        try:
            self._connection.settimeout(seconds)
            self._connection.sendall(REQUEST.pack(limits.max_bytes, limits.max_pixels, limits.min_side, len(data)))
            self._connection.sendall(data)
            self._receive(memoryview(reply), deadline)
            fault, width, height = REPLY.unpack(reply)
            if fault:
                raise ImageFaultError(Fault(fault), width, height)
            # The reply is not trusted: the file may have exploited the decoder.
            if width * height > limits.max_pixels or min(width, height) < limits.min_side:
                raise DecoderDiedError("the image decoder sent an image beyond the limits")
            pixels = np.empty((height, width, 3), np.uint8)
            self._receive(pixels.data.cast("B"), deadline)
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise DecoderDiedError("the image decoder died") from error
        return pixels

    def kill(self) -> None:
        """Kills the process, even while another thread waits for it; that thread must then close it."""
        self._process.kill()

    def close(self) -> None:
        """Kills the process and closes the connection."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _receive(self, view: memoryview, deadline: float) -> None:
        if not receive_into(self._connection, view, deadline):
            raise DecoderDiedError("the image decoder died")


def _environment() -> dict[str, str]:
    """A minimal environment for the worker, without the gateway's variables, which may hold keys."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**20),  # give the memory of large pictures back at once
    }
