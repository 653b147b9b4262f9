"""Remembers each image's seed, even if nothing was cached.

A request that failed, was cancelled or ran out of time leaves no draws behind, nor does an image that the cache has no
room for. Would the next request for the same image draw anew, then whoever waits for lucky draws could give up on all
others, and a certificate's confidence would be that of its luckiest attempt. So it makes the same draws again.
"""

from __future__ import annotations

import dataclasses
import hashlib

from cachetools import LRUCache

from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.request import Origin

_MOST = 2**16  # about 25 MB


def draws_name(key: CacheKey) -> bytes:
    """Names what the noise is drawn for: an image and f, whatever is computed from the draws."""
    drawn = dataclasses.replace(key, spectral=False, max_sketch_bytes=0, token_confidence=None)
    return hashlib.blake2b("\0".join(drawn.parts()).encode(), digest_size=16).digest()


class Origins(LRUCache[bytes, Origin]):
    """The origins of the latest draws, by :func:`draws_name`. Not safe for threads by itself.

    Args:
        most: How many are remembered.
    """

    def __init__(self, most: int = _MOST) -> None:
        super().__init__(most)
