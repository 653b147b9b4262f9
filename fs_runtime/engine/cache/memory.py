"""LRU cache of smoothed images within a number of bytes, keyed by everything that the draws depend on."""

from __future__ import annotations

import dataclasses

from cachetools import LRUCache

from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.stored import StoredImage

_LARGEST_SHARE = 16


class ImageCache:
    """Finished images in memory. Not safe for threads by itself.

    An image gets at most a sixteenth of the room, so that no few push out all others: what is needed to go on with it
    is left out first, and if it is still too large it is not kept.

    Args:
        max_bytes: Room for all; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._images: LRUCache[CacheKey, StoredImage] = LRUCache(max_bytes, getsizeof=lambda image: image.nbytes)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def nbytes(self) -> int:
        """Memory that the images take, about."""
        return int(self._images.currsize)

    @property
    def max_image_bytes(self) -> int:
        """Most that one image may take."""
        return self.max_bytes // _LARGEST_SHARE

    def get(self, key: CacheKey) -> StoredImage | None:
        """The image, which counts as used."""
        return self._images.get(key)

    def put(self, key: CacheKey, image: StoredImage) -> None:
        """Keeps an image in place of what was kept under the key."""
        if image.nbytes > self.max_image_bytes:
            image = dataclasses.replace(image, sums=None)
        self._images.pop(key, None)
        if image.nbytes <= self.max_image_bytes:
            self._images[key] = image
