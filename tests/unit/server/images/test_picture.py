"""What stays of an image when its pixels are gone."""

import asyncio
import weakref

import numpy as np
import pytest
from numpy.typing import NDArray

from fs_runtime.preprocessing.pictures import digest
from server.errors import ApiError, invalid
from server.images.limits import ImageLimits
from server.images.picture import Descriptions, Picture
from server.images.pool import DecodePool
from tests.unit.server.images.files import encoded, noise

pytestmark = pytest.mark.asyncio(loop_scope="module")
FILE, PIXELS = encoded(noise(70, 90)), np.asarray(noise(70, 90))


class Decoder:
    """Decodes in a process, and knows which pixels are still there."""

    def __init__(self, pool: DecodePool, limits: ImageLimits) -> None:
        self._pool, self._limits = pool, limits
        self.decoded: list[weakref.ref[NDArray[np.uint8]]] = []

    async def __call__(self, file: bytes) -> NDArray[np.uint8]:
        pixels = await self._pool.decode(file, self._limits)
        self.decoded.append(weakref.ref(pixels))
        return pixels

    async def all_gone(self) -> bool:
        """Whether no pixels are left, once the threads that handed them on have returned."""
        for _ in range(1000):
            if all(reference() is None for reference in self.decoded):
                return True
            await asyncio.sleep(0.005)
        return False


@pytest.fixture
def decoder(pool: DecodePool, limits: ImageLimits) -> Decoder:
    return Decoder(pool, limits)


async def test_pixels_are_not_kept_and_their_description_is(decoder: Decoder) -> None:
    found = Picture(FILE, decoder, Descriptions())
    assert await found.known_description() is None
    assert np.array_equal(await found.pixels(), PIXELS)
    assert await decoder.all_gone()
    description = await found.description()
    assert (description.digest, description.height, description.width) == (digest(PIXELS), 70, 90)
    assert await found.known_description() == description
    assert len(decoder.decoded) == 1


async def test_a_file_that_was_decoded_before_is_known(decoder: Decoder) -> None:
    descriptions = Descriptions(most=1)
    first = await Picture(FILE, decoder, descriptions).description()
    again = Picture(FILE, decoder, descriptions)
    assert await again.known_description() == await again.description() == first
    assert len(decoder.decoded) == 1
    other = Picture(encoded(noise(70, 90), "BMP"), decoder, descriptions)
    assert await other.known_description() is None
    assert (await other.description()).digest == first.digest  # the same pixels
    assert await Picture(FILE, decoder, descriptions).known_description() is None  # there is room for one


async def test_a_picture_that_nobody_decoded_is_described_too(decoder: Decoder) -> None:
    found = Picture(FILE, decoder, Descriptions())
    for _ in range(2):
        assert (await found.description()).digest == digest(PIXELS)
    assert await decoder.all_gone()
    assert len(decoder.decoded) == 1


async def test_what_decoding_raises_comes_through() -> None:
    async def refuse(file: bytes) -> NDArray[np.uint8]:
        raise invalid("no picture", "image")

    found = Picture(b"", refuse, Descriptions())
    for asked in (found.pixels, found.description):
        with pytest.raises(ApiError, match="no picture"):
            await asked()
