"""An append-only file of lines with rotation by size; a full disk leaves no partial lines."""

from __future__ import annotations

import os
from pathlib import Path

STDOUT = Path("-")


class LineFile:
    """Appends lines; not thread-safe.

    A line is written completely or not at all: a partial write is truncated. The path is checked for each line, so that
    a file that was moved away (by logrotate, or by hand) is created again.

    Args:
        path: The file, readable by owner and group only; ``-`` for standard output, which is never rotated.
        max_bytes: Size at which the file is renamed to ``<path>.1``; 0 for never.
        backups: Number of renamed files to keep.
    """

    def __init__(self, path: Path, max_bytes: int, backups: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._file = -1

    def write(self, line: bytes) -> None:
        """Appends one line.

        Raises:
            OSError: The line could not be written. The next call tries again.
        """
        line += b"\n"
        if self.path == STDOUT:
            _write_all(1, line)
            return
        self._open()
        if self._max_bytes and 0 < os.fstat(self._file).st_size > self._max_bytes - len(line):
            self._rotate()
            self._open()
        size = os.fstat(self._file).st_size
        try:
            _write_all(self._file, line)
        except OSError:
            self._truncate(size)
            raise

    def close(self) -> None:
        """Closes the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _open(self) -> None:
        if self._file >= 0:
            try:
                same_file = os.path.samestat(os.stat(self.path), os.fstat(self._file))
            except FileNotFoundError:
                same_file = False
            if same_file:
                return
            self.close()
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _rotate(self) -> None:
        self.close()
        names = [self.path, *(self.path.with_name(f"{self.path.name}.{n}") for n in range(1, self._backups + 1))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                newer.replace(older)
        if not self._backups:
            self.path.unlink()

    def _truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
        except OSError:  # a device or a pipe cannot be truncated
            self.close()


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]
