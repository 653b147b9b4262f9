"""The gateway's side of one decoder process: start it, send it a file, end it when it takes too long."""

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
    """The process ended, or said what it may not say."""


class DecoderProcess:
    """A running ``server.images.worker``; used by one thread at a time, but for :meth:`kill`.

    Raises:
        DecoderDiedError: It did not start.
    """

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 (our own module)
                [sys.executable, "-P", "-m", "server.images.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is the gateway's to handle
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
            # What the process says is checked: it may have been taken over by the file that it read.
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
        """Ends the process, also while another thread waits for it; that one then closes it."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _receive(self, view: memoryview, deadline: float) -> None:
        if not receive_into(self._connection, view, deadline):
            raise DecoderDiedError("the image decoder died")


def _environment() -> dict[str, str]:
    """What Python needs to find its modules; nothing of the gateway's own environment, where keys may be."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**20),  # give the memory of large pictures back at once
    }
