"""Remembers each image's seed, even if nothing was cached.

A request that failed, was cancelled or ran out of time leaves no draws behind, nor does an image that the cache has no
room for. Would the next request for the same image draw anew, then whoever waits for lucky draws could give up on all
others, and a certificate's confidence would be that of its luckiest attempt. So it makes the same draws again.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import OrderedDict

from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.stored import Origin

_MOST = 2**16  # about 25 MB


def draws_name(key: CacheKey) -> bytes:
    """Names what the noise is drawn for: an image and f, whatever is computed from the draws."""
    drawn = dataclasses.replace(key, spectral=False, max_sketch_bytes=0, token_confidence=None)
    return hashlib.blake2b("\0".join(drawn.parts()).encode(), digest_size=16).digest()


class Origins:
    """The origins of the latest draws, by :func:`draws_name`. Not safe for threads by itself.

    Args:
        most: How many are remembered; the one that was used least recently goes first.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._origins: OrderedDict[bytes, Origin] = OrderedDict()

    def get(self, name: bytes) -> Origin | None:
        """The origin, which counts as used."""
        found = self._origins.get(name)
        if found is not None:
            self._origins.move_to_end(name)
        return found

    def put(self, name: bytes, origin: Origin) -> None:
        """Remembers an origin in place of an earlier one of this name."""
        self._origins[name] = origin
        self._origins.move_to_end(name)
        if len(self._origins) > self._most:
            self._origins.popitem(last=False)
