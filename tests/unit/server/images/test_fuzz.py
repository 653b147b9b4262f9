"""Byte-level fuzzing of the decode path that the server uses: mutated files of every format, through the pool.

``corpus`` holds one small file of each kind. The mutations are drawn from a seed, so a failure comes again.
"""

import asyncio
import contextlib
import io
import random
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import pytest_asyncio

from server.images.decode import decode_image
from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits
from server.images.pool import DecodePool

CORPUS = {file.name: file.read_bytes() for file in sorted((Path(__file__).parent / "corpus").iterdir())}
LIMITS = ImageLimits(max_bytes=2**20, max_pixels=4_000_000, min_side=4)
EXTREMES = (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\0\0\0\1", b"\1\0\0\0", b"\x80\0\0\0")
MEGABYTE = 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[DecodePool]:
    pool = DecodePool(processes=1, seconds=10)
    await pool.start()
    yield pool
    await pool.close()


def mutated(data: bytes, draw: random.Random) -> bytes:
    """One to four mutations, and now and then the checksums put right, so that what lies behind them is reached."""
    file = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(file) + 1)
        length = min(draw.choice((1, 2, 4, 16, 64)), len(file) - place)
        match draw.randrange(8):
            case 0:
                if place < len(file):
                    file[place] ^= 1 << draw.randrange(8)
            case 1:
                file[place : place + length] = draw.randbytes(length)
            case 2:
                del file[place:]
            case 3:
                del file[place : place + length]
            case 4:
                file[place:place] = draw.randbytes(length)
            case 5:
                file[place : place + 4] = draw.choice(EXTREMES)
            case 6:
                file[place:place] = file[place : place + length] * draw.randint(1, 200)
            case 7:
                other = draw.choice(list(CORPUS.values()))
                start = draw.randrange(len(other))
                file[place : place + length] = other[start : start + draw.choice((4, 64, 1000))]
    if file.startswith(b"\x89PNG") and draw.random() < 0.7:
        return with_checksums(bytes(file))
    return bytes(file)


def with_checksums(data: bytes) -> bytes:
    """A PNG with the checksum of every chunk as it should be."""
    file, place = io.BytesIO(data[:8]), 8
    file.seek(8)
    while place + 8 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunk = data[place + 4 : place + 8 + length]
        if len(chunk) < 4 + length:
            file.write(data[place:])
            break
        file.write(data[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk)))
        place += 12 + length
    return file.getvalue()


async def fuzz(pool: DecodePool, cases: int, seed: int) -> Counter[str]:
    """Decodes that many mutated files; returns how often each outcome was seen."""
    draw = random.Random(seed)
    outcomes: Counter[str] = Counter()
    seeds = list(CORPUS.values())
    before: tuple[int, int] | None = None
    for number in range(cases):
        data = mutated(draw.choice(seeds), draw)
        try:
            pixels = await pool.decode(data, LIMITS)
        except ImageFaultError as error:
            outcomes[error.fault.name] += 1
        else:
            outcomes["decoded"] += 1
            assert pixels.ndim == 3
            assert min(pixels.shape[:2]) >= 4
            assert pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels
        assert pool.replaced == 0, f"case {number} of seed {seed} crashed or blocked the decoder: {data.hex()}"
        if number == cases // 4:
            before = memory(pool)
    assert before is not None
    growth = [(now - then) / MEGABYTE for now, then in zip(memory(pool), before, strict=True)]
    assert max(growth) < 24, f"memory of decoder and gateway grew by {growth} MB"
    return outcomes


def memory(pool: DecodePool) -> tuple[int, int]:
    return psutil.Process(pool.pids[0]).memory_info().rss, psutil.Process().memory_info().rss


@pytest.mark.asyncio(loop_scope="module")
async def test_the_corpus_itself(pool: DecodePool) -> None:
    for name, data in CORPUS.items():
        if name.startswith("animated"):
            with pytest.raises(ImageFaultError) as caught:
                await pool.decode(data, LIMITS)
            assert caught.value.fault == Fault.ANIMATED
        else:
            np.testing.assert_array_equal(await pool.decode(data, LIMITS), decode_image(data, LIMITS))


@pytest.mark.asyncio(loop_scope="module")
async def test_fuzz(pool: DecodePool) -> None:
    outcomes = await fuzz(pool, cases=5000, seed=1)
    # The mutations must reach all that can happen, else they test nothing.
    assert outcomes["decoded"] > 200
    assert outcomes["DAMAGED"] > 200
    assert outcomes["NOT_AN_IMAGE"] > 100
    assert {"TOO_MANY_PIXELS", "ANIMATED"} <= outcomes.keys()


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
async def test_fuzz_at_length(pool: DecodePool) -> None:
    print(dict(await fuzz(pool, cases=100_000, seed=2)))


@pytest.mark.asyncio(loop_scope="module")
async def test_random_bytes_behind_every_signature(pool: DecodePool) -> None:
    draw = random.Random(3)
    starts = [data[: draw.choice((4, 8, 12, 20, 30))] for data in CORPUS.values() for _ in range(10)]
    for start in starts:
        with contextlib.suppress(ImageFaultError):
            await asyncio.wait_for(pool.decode(start + draw.randbytes(draw.randint(0, 5000)), LIMITS), 10)
    assert pool.replaced == 0
