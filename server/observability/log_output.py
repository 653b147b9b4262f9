"""Log lines to standard error that never stop the server: whoever reads them may be slow, gone, or out of disk."""

from __future__ import annotations

import logging
import os
import queue
import threading
from contextlib import suppress

_MAX_LINES = 10_000
STANDARD_ERROR = 2


class LogOutput(logging.Handler):
    """Writes lines on a thread of its own. Where they cannot be written they are dropped, and their number is logged.

    Writing to a pipe that nobody reads blocks for ever; on the event loop it would stop all requests. The thread writes
    to the file descriptor itself, past Python's buffers: their locks would stop the end of the process.

    Args:
        descriptor: Where to.
        max_lines: Lines that may wait.
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
        except Exception:  # a value that cannot be shown must not fail the request that logs it
            line = b'{"event": "a log line could not be formatted", "level": "error"}\n'
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def flush(self, limit: float = 1.0) -> None:
        """Waits until all lines are written, or ``limit`` seconds."""
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
    """Gives a process that was started without standard input, output or error an empty one.

    Else the next file or socket that it opens gets the number of standard error, and its log lines.
    """
    with suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STANDARD_ERROR:
            pass
        os.close(descriptor)
