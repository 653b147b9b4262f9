"""Files that are small and would be expensive: each is refused, quickly and in little memory, and decoding goes on."""

import asyncio
import struct
import time
import zlib
from collections.abc import Callable

import psutil
import pytest
from PIL import Image

from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits
from server.images.pool import DecodePool
from tests.unit.server.images.files import (
    bmp_of_size,
    encoded,
    gif_of_frames,
    jpeg_of_many_scans,
    jpeg_of_size,
    noise,
    png,
    png_chunk,
    webp_of_canvas,
    webp_of_size,
    zeros,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

BOMBS: dict[str, tuple[Callable[[], bytes], set[Fault]]] = {
    "png of 64000 x 64000": (lambda: png(64000, 64000, zeros(10**6)), {Fault.TOO_MANY_PIXELS}),
    "png of the largest size": (lambda: png(2**31 - 1, 2**31 - 1, zeros(10**6)), {Fault.TOO_MANY_PIXELS}),
    "png of 1-bit pixels": (lambda: encoded(Image.new("1", (5000, 4900))), {Fault.TOO_COMPRESSED}),
    "png with a text of 100 MB": (
        lambda: png(8, 8, zlib.compress(bytes(200)), more=png_chunk(b"zTXt", b"a\0\0" + zeros(100 * 2**20))),
        {Fault.NOT_AN_IMAGE, Fault.DAMAGED},
    ),
    "png with a profile of 100 MB": (
        lambda: png(8, 8, zlib.compress(bytes(200)), more=png_chunk(b"iCCP", b"a\0\0" + zeros(100 * 2**20))),
        {Fault.NOT_AN_IMAGE, Fault.DAMAGED},
    ),
    "animated png": (
        lambda: encoded(noise(), "PNG", save_all=True, append_images=[noise()] * 3, disposal=1, blend=0, duration=9),
        {Fault.ANIMATED, Fault.DAMAGED},
    ),
    "png that says it has a thousand million frames": (
        lambda: png(8, 8, zlib.compress(bytes(200)), more=png_chunk(b"acTL", struct.pack(">II", 2**30, 0))),
        {Fault.ANIMATED},
    ),
    "jpeg of 65535 x 65535": (lambda: jpeg_of_size(65535, 65535), {Fault.TOO_MANY_PIXELS}),
    "jpeg of 5000 x 5000 that has 30 x 20": (lambda: jpeg_of_size(5000, 5000), {Fault.TOO_COMPRESSED}),
    "jpeg of 100000 scans": (lambda: jpeg_of_many_scans(100_000), {Fault.TOO_COMPLEX}),
    "webp with the largest canvas": (lambda: webp_of_canvas(2**24, 2**24), {Fault.TOO_MANY_PIXELS}),
    "webp with a canvas in the limit": (lambda: webp_of_canvas(4999, 5000), {Fault.TOO_COMPRESSED}),
    "webp of 16383 x 16383": (
        lambda: webp_of_size(16383, 16383),
        {Fault.TOO_MANY_PIXELS},
    ),
    "gif of 10000 frames": (lambda: gif_of_frames(10_000), {Fault.ANIMATED}),
    "bmp of 30000 x 30000": (
        lambda: bmp_of_size(30000, 30000),
        {Fault.TOO_MANY_PIXELS},
    ),
    "bmp of negative size": (
        lambda: bmp_of_size(-(2**31), -(2**31)),
        {Fault.NOT_AN_IMAGE, Fault.TOO_MANY_PIXELS, Fault.TOO_SMALL, Fault.DAMAGED},
    ),
    "tiff": (lambda: encoded(noise(), "TIFF"), {Fault.NOT_AN_IMAGE}),
    "tiff behind a png's signature": (
        lambda: b"\x89PNG\r\n\x1a\n" + encoded(noise(), "TIFF"),
        {Fault.NOT_AN_IMAGE, Fault.DAMAGED},
    ),
}


@pytest.mark.parametrize("name", BOMBS)
async def test_bombs(pool: DecodePool, limits: ImageLimits, name: str) -> None:
    make, expected = BOMBS[name]
    data = make()
    assert len(data) < 2 * 2**20
    process = psutil.Process(pool.pids[0])
    start = time.perf_counter()
    with pytest.raises(ImageFaultError) as caught:
        await pool.decode(data, limits)
    assert caught.value.fault in expected, caught.value.fault
    assert time.perf_counter() - start < 2
    assert process.is_running()
    assert pool.replaced == 0
    assert process.memory_info().rss < 200 * 2**20
    assert (await pool.decode(encoded(noise()), limits)).shape == (20, 30, 3)


async def test_pixels_behind_the_end_of_the_image_are_not_inflated(pool: DecodePool, limits: ImageLimits) -> None:
    data = zeros(200 * 2**20)  # the image needs the first 200 bytes
    start = time.perf_counter()
    assert (await pool.decode(png(8, 8, data), limits)).shape == (8, 8, 3)
    assert time.perf_counter() - start < 2


async def test_the_loop_goes_on_during_a_slow_decode(pool: DecodePool, limits: ImageLimits) -> None:
    data = jpeg_of_many_scans(80, side=3000)
    slow = asyncio.ensure_future(pool.decode(data, limits))
    longest = 0.0
    while not slow.done():
        start = time.perf_counter()
        await asyncio.sleep(0.005)
        longest = max(longest, time.perf_counter() - start)
    assert (await slow).shape == (3000, 3000, 3)
    assert longest < 0.5
