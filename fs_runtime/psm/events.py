"""A file of scalars that TensorBoard reads, written without tensorboardX's queue.

The thread that empties that queue ends at the first write that fails, a full disk for example, and the queue then
blocks whoever fills it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

_FLUSH = 30.0  # seconds from one flush to the next


class EventFile:
    """A file of its own in a folder of logs.

    Args:
        folder: Of the logs; it exists.

    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads a folder's files in order of name, so the time comes first.
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(str(folder / name))
        self._next_flush = 0.0
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, name: str, value: float, step: int) -> None:
        """Writes a scalar.

        Raises:
            OSError: The disk is full, or cannot be written.
        """
        self._write(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def close(self) -> None:
        """Closes the file. What a full disk does not take is lost, without an error: the logs are not the work."""
        with contextlib.suppress(OSError):
            self._writer.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        if time.monotonic() >= self._next_flush:
            self._writer.flush()
            self._next_flush = time.monotonic() + _FLUSH
