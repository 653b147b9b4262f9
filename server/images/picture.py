"""An image on its way through a request: the file, and what is said of its pixels."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs_runtime.receipts.document import ReceiptImage

Decode = Callable[[bytes], Coroutine[Any, Any, NDArray[np.uint8]]]


class Picture:
    """Decodes its file for those who need pixels, and keeps none: a file may have hundreds of times its own bytes.

    Made on the event loop; its methods are for other threads, one at a time.

    Args:
        file: As it was sent.
        decode: Decodes it, on the event loop.
        described: Whether :meth:`description` will be asked for, so that the first decode makes it.
    """

    def __init__(self, file: bytes, decode: Decode, *, described: bool) -> None:
        self._file = file
        self._decode = decode
        self._described = described
        self._description: ReceiptImage | None = None
        self._loop, self._context = asyncio.get_running_loop(), contextvars.copy_context()

    def file_digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self._file).hexdigest()

    def pixels(self) -> NDArray[np.uint8]:
        """``(H, W, 3)`` uint8 RGB. Raises as ``decode``."""
        decoding = self._decode(self._file)
        pixels = self._context.run(asyncio.run_coroutine_threadsafe, decoding, self._loop).result()
        if self._described and self._description is None:
            self._description = ReceiptImage.of(pixels)
        return pixels

    def description(self) -> ReceiptImage:
        """Digest and size of the pixels; decodes the file if nobody needed them before. Raises as ``decode``."""
        if self._description is None:
            self._description = ReceiptImage.of(self.pixels())
        return self._description
