"""Seeds of the parts of an evaluation."""

from __future__ import annotations

import zlib


def seed_of(seed: int, *purpose: object) -> int:
    """A seed below 2**63 that depends on the purpose and the evaluation's seed, and is the same after a resume.

    Bits of the evaluation's seed above the low 23 enter through the hash. The low eight bits are free for the caller.
    """
    high, low = divmod(seed, 2**23)
    return low * 2**40 + zlib.crc32(repr(purpose).encode(), high) * 2**8
