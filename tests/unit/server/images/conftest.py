"""One pool of decoder processes for all tests of images, and how much memory they take."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from server.images.limits import ImageLimits
from server.images.pool import DecodePool

LIMITS = ImageLimits(max_bytes=20 * 2**20, max_pixels=25_000_000, min_side=4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[DecodePool]:
    pool = DecodePool(processes=1, seconds=10)
    await pool.start()
    yield pool
    await pool.close()


@pytest.fixture
def limits() -> ImageLimits:
    return LIMITS
