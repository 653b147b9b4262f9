"""Writes the files of a training run so that a kill or a full disk never leaves half a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class TrainingError(ValueError):
    """Training cannot start or continue; the message gives reason and remedy."""


def write_file(path: Path, contents: bytes) -> None:
    """Writes a file under a temporary name, and renames it when it is complete.

    Raises:
        TrainingError: The disk is full or cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TrainingError(
                f"no space left to write {path} ({len(contents) / 2**20:.0f} MiB); make room and give the same "
                "command again: it goes on from the last checkpoint"
            ) from error
        raise TrainingError(f"cannot write {path}: {error.strerror or error}") from error
