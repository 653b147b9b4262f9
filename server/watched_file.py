"""A file of the operator's whose changes take effect without a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

WATCH_SECONDS = 1.0


class WatchedFile:
    """Tells when the contents of a file have changed.

    The contents are compared, not the time of change: it works alike on every file system, and for files that are
    links swapped by an orchestrator.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._read()

    def contents(self) -> bytes:
        """What the file held when it was looked at last.

        Raises:
            OSError: It could not be read.
        """
        found = self._seen
        if isinstance(found, str):
            raise OSError(found)
        return found

    async def has_changed(self) -> bool:
        """Looks again; whether :meth:`contents` is something else from now on."""
        found = await asyncio.to_thread(self._read)
        changed, self._seen = found != self._seen, found
        return changed

    def _read(self) -> bytes | str:
        """The contents, or what is wrong with reading them."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            return f"{self.path} cannot be read: {error.strerror}"
