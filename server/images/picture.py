"""An image of a request: its file, and the description of its pixels."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from fs_runtime.receipts.document import ReceiptImage

Decode = Callable[[bytes], Awaitable[NDArray[np.uint8]]]

_MOST = 2**14  # about 10 MB


class Descriptions(LRUCache[bytes, ReceiptImage]):
    """Descriptions of the files that were decoded last, by the files' digests.

    Draws belong to an image as pixels, whatever file they come in. Who sends a picture again mostly sends the same
    file, whose pixels need not be decoded to know which they are.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = _MOST) -> None:
        super().__init__(most)


class Picture:
    """Decodes its file for those who need pixels, and keeps none: a file may have hundreds of times its own bytes.

    Args:
        file: As it was sent.
        decode: Decodes it.
        descriptions: Of files that were decoded before; on the event loop alone.
    """

    def __init__(self, file: bytes, decode: Decode, descriptions: Descriptions) -> None:
        self._file = file
        self._decode = decode
        self._descriptions = descriptions
        self._file_digest: bytes | None = None
        self._description: ReceiptImage | None = None

    async def known_description(self) -> ReceiptImage | None:
        """Digest and size of the pixels; None where nobody has decoded such a file of late."""
        if self._description is None:
            self._description = self._descriptions.get(await self._digest())
        return self._description

    async def pixels(self) -> NDArray[np.uint8]:
        """``(H, W, 3)`` uint8 RGB. Raises as ``decode``."""
        pixels = await self._decode(self._file)
        if await self.known_description() is None:
            self._description = await asyncio.to_thread(ReceiptImage.of, pixels)
            self._descriptions[await self._digest()] = self._description
        return pixels

    async def description(self) -> ReceiptImage:
        """Digest and size of the pixels; decodes the file if nobody did before. Raises as ``decode``."""
        if await self.known_description() is None:
            await self.pixels()
        assert self._description is not None  # noqa: S101 (made by pixels)
        return self._description

    async def _digest(self) -> bytes:
        if self._file_digest is None:
            self._file_digest = await asyncio.to_thread(lambda: hashlib.sha256(self._file).digest())
        return self._file_digest
