"""An image of a request: its file, and the description of its pixels."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from fs_runtime.receipts.document import ReceiptImage

Decode = Callable[[bytes], Awaitable[NDArray[np.uint8]]]


class Picture:
    """Decodes its file for those who need pixels, and keeps none: a file may have hundreds of times its own bytes.

    Args:
        file: As it was sent.
        decode: Decodes it.
        described: Whether :meth:`description` will be asked for, so that the first decode makes it.
    """

    def __init__(self, file: bytes, decode: Decode, *, described: bool) -> None:
        self._file = file
        self._decode = decode
        self._described = described
        self._description: ReceiptImage | None = None

    async def file_digest(self) -> str:
        """SHA-256 of the file."""
        return await asyncio.to_thread(lambda: hashlib.sha256(self._file).hexdigest())

    async def pixels(self) -> NDArray[np.uint8]:
        """``(H, W, 3)`` uint8 RGB. Raises as ``decode``."""
        pixels = await self._decode(self._file)
        if self._described and self._description is None:
            self._description = await asyncio.to_thread(ReceiptImage.of, pixels)
        return pixels

    async def description(self) -> ReceiptImage:
        """Digest and size of the pixels; decodes the file if nobody needed them before. Raises as ``decode``."""
        if self._description is None:
            self._description = await asyncio.to_thread(ReceiptImage.of, await self._decode(self._file))
        return self._description
