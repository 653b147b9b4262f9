"""The pool of decoder processes: what it survives, and what the processes may not do."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image

from server.images.decode import decode_image
from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits
from server.images.pool import DecodePool, DecodersBusyError
from server.images.process import DecoderDiedError, DecoderProcess
from server.images.protocol import REQUEST
from tests.unit.server.images.files import encoded, jpeg_of_many_scans, noise, swapped_profile

pytestmark = pytest.mark.asyncio(loop_scope="module")
SLOW = 90  # scans; within the limit


async def test_the_same_pixels_as_without_a_process(pool: DecodePool, limits: ImageLimits) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        data = encoded(noise(70, 90), kind)
        pixels = await pool.decode(data, limits)
        np.testing.assert_array_equal(pixels, decode_image(data, limits))
        assert pixels.flags.writeable or pixels.flags.owndata


async def test_the_largest_allowed_image_with_all_that_costs_memory(pool: DecodePool, limits: ImageLimits) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noise(50, 50).resize((5000, 5000), Image.Resampling.NEAREST).convert("RGBA")
    data = encoded(image, "PNG", exif=exif, icc_profile=swapped_profile(), compress_level=1)
    assert (await pool.decode(data, limits)).shape == (5000, 5000, 3)
    assert pool.replaced == 0
    assert psutil.Process(pool.pids[0]).memory_info().rss < 150 * 2**20, "memory was not given back"


async def test_a_process_that_dies_is_replaced_and_the_image_decoded(pool: DecodePool, limits: ImageLimits) -> None:
    before = pool.replaced
    os.kill(pool.pids[0], signal.SIGKILL)
    assert (await pool.decode(encoded(noise()), limits)).shape == (20, 30, 3)
    assert pool.replaced == before + 1


async def test_an_image_that_kills_two_processes_is_at_fault(
    limits: ImageLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No file is known that crashes the decoders, so the processes are killed when they have been given one.
    pool = DecodePool(processes=1, seconds=10)
    decode = DecoderProcess.decode

    def decode_and_die(self: DecoderProcess, data: bytes, limits: ImageLimits, seconds: float) -> object:
        os.kill(self.pid, signal.SIGSEGV)
        return decode(self, data, limits, seconds)

    monkeypatch.setattr(DecoderProcess, "decode", decode_and_die)
    with pytest.raises(ImageFaultError) as caught:
        await pool.decode(encoded(noise()), limits)
    assert (caught.value.fault, pool.replaced) == (Fault.DAMAGED, 2)
    monkeypatch.undo()
    assert (await pool.decode(encoded(noise()), limits)).shape == (20, 30, 3)
    await pool.close()


async def test_a_decode_that_takes_too_long_is_stopped(limits: ImageLimits) -> None:
    pool = DecodePool(processes=1, seconds=0.3)
    await pool.start()
    first = pool.pids[0]
    start = time.perf_counter()
    with pytest.raises(ImageFaultError) as caught:
        await pool.decode(jpeg_of_many_scans(SLOW, side=5000), limits)
    assert caught.value.fault == Fault.TOO_SLOW
    assert time.perf_counter() - start < 3
    assert not psutil.pid_exists(first)
    assert (await pool.decode(encoded(noise()), limits)).shape == (20, 30, 3)
    await pool.close()


async def test_slow_decodes_do_not_use_up_the_default_threads(limits: ImageLimits) -> None:
    pool = DecodePool(processes=1, seconds=1)
    data = jpeg_of_many_scans(SLOW, side=3000)
    slow = [asyncio.ensure_future(pool.decode(data, limits)) for _ in range(40)]
    await asyncio.sleep(0)
    start = time.perf_counter()
    assert await asyncio.to_thread(lambda: "free") == "free"
    assert time.perf_counter() - start < 1
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    await pool.close()


async def test_more_than_may_wait_are_turned_away(limits: ImageLimits) -> None:
    pool = DecodePool(processes=1, seconds=10)
    slow = jpeg_of_many_scans(SLOW, side=3000)
    waiting = [asyncio.ensure_future(pool.decode(slow, limits)) for _ in range(65)]
    await asyncio.sleep(0)
    with pytest.raises(DecodersBusyError):
        await pool.decode(encoded(noise()), limits)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await pool.decode(encoded(noise()), limits)).shape == (20, 30, 3)
    await pool.close()


async def test_no_process_is_left(limits: ImageLimits) -> None:
    pool = DecodePool(processes=2, seconds=10)
    await asyncio.gather(*(pool.decode(encoded(noise(500, 500)), limits) for _ in range(8)))
    pids = pool.pids
    assert 1 <= len(pids) <= 2
    await pool.close()
    assert not any(map(psutil.pid_exists, pids))


async def test_closing_does_not_wait_for_what_is_under_way(limits: ImageLimits) -> None:
    pool = DecodePool(processes=2, seconds=600)
    await asyncio.gather(*(pool.decode(encoded(noise(500, 500)), limits) for _ in range(8)))
    pids = pool.pids
    slow = [asyncio.ensure_future(pool.decode(jpeg_of_many_scans(SLOW, side=5000), limits)) for _ in range(3)]
    while pool.pids:  # noqa: ASYNC110 (until both are busy; the third picture waits)
        await asyncio.sleep(0.01)
    await pool.close()
    ends = await asyncio.gather(*slow, return_exceptions=True)
    assert [type(end) for end in ends] == [DecoderDiedError, DecoderDiedError, asyncio.CancelledError]
    assert pool.replaced == 0
    assert not any(map(psutil.pid_exists, pids))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderProcess]:
    monkeypatch.setenv("FS_API_KEYS", "canary-key")
    process = DecoderProcess()
    yield process
    process.close()


async def test_processes_have_no_keys_and_few_rights(process: DecoderProcess, limits: ImageLimits) -> None:
    child = psutil.Process(process.pid)
    assert not any("FS_" in name or "canary" in value for name, value in child.environ().items())
    for what in (psutil.RLIMIT_NOFILE, psutil.RLIMIT_FSIZE, psutil.RLIMIT_CORE, psutil.RLIMIT_NPROC):
        assert child.rlimit(what) == (0, 0)
    process.decode(encoded(noise()), limits, 10)
    assert 0 < child.rlimit(psutil.RLIMIT_AS)[0] < 4 * 2**30
    assert len(child.net_connections(kind="inet")) == 0
    assert not [file for file in child.open_files() if file.path != os.devnull]


async def test_an_inherited_memory_limit_is_kept(process: DecoderProcess, limits: ImageLimits) -> None:
    least = 2**30  # less than a picture of the most pixels may take, and enough for this one
    psutil.Process(process.pid).rlimit(psutil.RLIMIT_AS, (least, least))
    assert process.decode(encoded(noise()), limits, 10).shape == (20, 30, 3)
    assert psutil.Process(process.pid).rlimit(psutil.RLIMIT_AS) == (least, least)


async def test_a_process_that_says_what_it_may_not_say_is_not_believed(
    process: DecoderProcess, limits: ImageLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The process is told the usual limits, the gateway's side expects smaller ones.
    narrow = ImageLimits(limits.max_bytes, max_pixels=100, min_side=4)
    told = REQUEST.pack(limits.max_bytes, limits.max_pixels, limits.min_side, len(encoded(noise())))
    monkeypatch.setattr("server.images.process.REQUEST", SimpleNamespace(pack=lambda *_: told))
    with pytest.raises(DecoderDiedError):
        process.decode(encoded(noise()), narrow, 10)


async def test_limits_are_those_of_the_request(pool: DecodePool, limits: ImageLimits) -> None:
    narrow = ImageLimits(limits.max_bytes, max_pixels=100, min_side=4)
    with pytest.raises(ImageFaultError):
        await pool.decode(encoded(noise()), narrow)
    assert (await pool.decode(encoded(noise()), limits)).shape == (20, 30, 3)
