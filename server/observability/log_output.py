"""A log handler that never blocks the server, even if nobody reads standard error or the disk is full."""

from __future__ import annotations

import logging
import os
import queue
import threading
from contextlib import suppress

_MAX_LINES = 10_000
STANDARD_ERROR = 2


class LogOutput(logging.Handler):
    """Writes log lines on its own thread. It drops lines that cannot be written, and logs how many.

    Writing to a pipe that nobody reads blocks for ever, and on the event loop it would stop all requests. The thread
    writes to the file descriptor directly, since the locks of Python's buffers could block the exit of the process.

    Args:
        descriptor: File descriptor to write to.
        max_lines: Most lines that may wait.
    """

    def __init__(self, descriptor: int = STANDARD_ERROR, max_lines: int = _MAX_LINES) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes] = queue.Queue(max_lines)
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queues one line."""
        try:
            line = (self.format(record) + "\n").encode(errors="backslashreplace")
        except Exception:  # a value without a valid repr must not fail the request
            line = b'{"event": "a log line could not be formatted", "level": "error"}\n'
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def flush(self, limit: float = 1.0) -> None:
        """Waits until all lines are written, for at most ``limit`` seconds."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: self._lines.unfinished_tasks == 0, limit)

    def _write_all(self) -> None:
        reported = 0
        while True:
            line = self._lines.get()
            if (dropped := self.dropped) > reported:
                line = (
                    b'{"event": "log lines dropped", "level": "warning", "count": %d}\n' % (dropped - reported) + line
                )
            try:
                self._write(line)
                reported = dropped
            except OSError:  # no space, no reader
                self.dropped += 1
            self._lines.task_done()

    def _write(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._descriptor, line) :]


def open_missing_streams() -> None:
    """Opens /dev/null for standard input, output or error if the process was started without one.

    Else the next file or socket that it opens could get standard error's number, and receive the log lines.
    """
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
            pass
        os.close(descriptor)
