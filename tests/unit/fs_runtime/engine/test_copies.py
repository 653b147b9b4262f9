"""Copies that somebody asks about by themselves: which they are, how many there are at once, and how they end."""

import asyncio
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from fs_runtime.encoders import VisionEncoder
from fs_runtime.engine import (
    CertificateTerms,
    Copies,
    DeadlineExceededError,
    SmoothingEngine,
    SmoothingError,
    SmoothingRequest,
    SmoothingResult,
)
from fs_runtime.smoothing.smoother import Smoother
from tests.unit.fs_runtime.engine.conftest import WatchedSmoother

TERMS = CertificateTerms(0.1, 0.95)


class Reader:
    """Takes what it wants and keeps it."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.copies = Copies(self.there.set)
        self.taken: list[NDArray[np.generic]] = []

    def take(self, count: int) -> None:
        while len(self.taken) < count:
            new = self.copies.take(count - len(self.taken))
            self.taken += [payload["image_embeds"] for payload in new]
            if not new:
                assert self.there.wait(30), "no copy came"
                self.there.clear()


def begin(
    engine: SmoothingEngine, picture: NDArray[np.uint8], copies: Copies, request: SmoothingRequest
) -> tuple[threading.Thread, list[SmoothingResult | Exception]]:
    """Runs a request on a thread of its own; the result as a list that the thread fills."""
    out: list[SmoothingResult | Exception] = []

    async def run() -> SmoothingResult:
        recall = await engine.recall(request)
        async with engine.place(request.tenant) as place:
            return await engine.smooth(recall, picture, place, copies)

    def work() -> None:
        try:
            out.append(asyncio.run(run()))
        except Exception as error:
            out.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, out


@pytest.fixture
def picture() -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (70, 90, 3), dtype=np.uint8)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.copies.close()


def test_they_are_the_samples_one_by_one(encoder: VisionEncoder, picture: NDArray[np.uint8], reader: Reader) -> None:
    """Each is what the language model would read of that sample alone, and the certificate is of the same samples."""
    engine, smoother = SmoothingEngine(Smoother(encoder), batch_size=8), Smoother(encoder)
    try:
        reader.copies.want(20)
        thread, out = begin(engine, picture, reader.copies, SmoothingRequest(TERMS, 20, seed=5))
        reader.take(20)
        reader.copies.release(20)
        thread.join(30)
        plain = engine.submit(SmoothingRequest(TERMS, 20, seed=5), picture).result(30)
    finally:
        engine.close()
    state = smoother.start(encoder.prepare(picture), 0.1, 5)
    features = smoother.draw_plain(state, 20)
    for copy, feature in zip(reader.taken, features, strict=True):
        expected = encoder.payload(encoder.project(feature, state.image.grid), state.image)["image_embeds"]
        np.testing.assert_allclose(copy, expected, rtol=1e-4, atol=1e-5)
    (result,) = out
    assert isinstance(result, SmoothingResult)
    assert (result.samples, result.ended, result.norm_lower) == (20, "samples", plain.norm_lower)
    assert reader.copies.ended


def test_no_more_are_drawn_than_are_wanted_and_there_is_room_for(
    encoder: VisionEncoder, picture: NDArray[np.uint8], reader: Reader
) -> None:
    bytes_each = _bytes(encoder, picture)
    engine = SmoothingEngine(Smoother(encoder), batch_size=8, max_copy_bytes=12 * bytes_each)
    try:
        thread, out = begin(engine, picture, reader.copies, SmoothingRequest(TERMS, 200, seed=5))
        reader.copies.want(5)
        reader.take(5)
        _settle(engine)
        assert (engine.samples_drawn, reader.copies.ready) == (5, 0)
        reader.copies.want(200)
        while engine.samples_drawn < 12:
            reader.there.wait(0.05)
        _settle(engine)
        assert engine.samples_drawn == 12  # the five that were taken are alive as long as they are not released
        reader.copies.release(5)
        while engine.samples_drawn < 17:
            reader.there.wait(0.05)
        _settle(engine)
        assert engine.samples_drawn == 17
        other = engine.submit(SmoothingRequest(TERMS, 30, seed=6), picture).result(30)  # others go on meanwhile
        assert other.samples == 30
        reader.copies.stop()
        thread.join(30)
    finally:
        engine.close()
    (result,) = out
    assert isinstance(result, SmoothingResult)
    assert (result.samples, result.max_samples, result.ended) == (17, 200, "votes")


def test_draws_of_one_purpose_are_the_same_and_of_another_are_not(
    encoder: VisionEncoder, picture: NDArray[np.uint8]
) -> None:
    engine = SmoothingEngine(Smoother(encoder), batch_size=8, cache_bytes=2**20)
    seeds = []
    try:
        for purpose in ("question 1", "question 1", "question 2", ""):
            reader = Reader()
            reader.copies.want(8)
            request = SmoothingRequest(TERMS, 8, image_id="a", purpose=purpose)
            thread, out = begin(engine, picture, reader.copies, request)
            reader.take(8)
            reader.copies.close()
            thread.join(30)
            assert isinstance(out[0], SmoothingResult)
            seeds.append(out[0].seed)
        features = engine.submit(SmoothingRequest(TERMS, 8, image_id="a"), picture).result(30)
    finally:
        engine.close()
    assert seeds[0] == seeds[1]
    assert len({*seeds[1:]}) == 3
    assert (features.seed, features.cache) == (seeds[3], "miss")  # of copies nothing is kept but the origin


def test_a_reader_that_leaves_frees_the_room(
    encoder: VisionEncoder, picture: NDArray[np.uint8], reader: Reader
) -> None:
    engine = SmoothingEngine(Smoother(encoder), batch_size=8)
    try:
        reader.copies.want(16)
        thread, out = begin(engine, picture, reader.copies, SmoothingRequest(TERMS, 64, seed=1))
        reader.take(3)
        assert engine._copies.used > 0
        reader.copies.close()
        thread.join(30)
        assert isinstance(out[0], SmoothingResult)
        assert engine._copies.used == 0
        assert engine.queued_images == 0
    finally:
        engine.close()


def test_a_deadline_ends_them(encoder: VisionEncoder, picture: NDArray[np.uint8], reader: Reader) -> None:
    engine = SmoothingEngine(Smoother(encoder), batch_size=8)
    try:
        reader.copies.want(4)
        request = SmoothingRequest(TERMS, 64, seed=1, timeout=0.5)
        thread, out = begin(engine, picture, reader.copies, request)
        thread.join(30)
        assert isinstance(out[0], DeadlineExceededError)
        assert reader.copies.ended
    finally:
        engine.close()


def test_a_failure_ends_them(
    engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8], reader: Reader
) -> None:
    def fail(_parts: object) -> None:
        raise RuntimeError("broken")

    smoother.step = fail  # type: ignore[method-assign,assignment]
    reader.copies.want(4)
    thread, out = begin(engine, picture, reader.copies, SmoothingRequest(TERMS, 64, seed=1))
    thread.join(30)
    assert isinstance(out[0], SmoothingError)
    assert reader.copies.ended
    assert reader.copies.take(1) == []


def _bytes(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> int:
    image = encoder.prepare(picture)
    features = Smoother(encoder).draw_plain(Smoother(encoder).start(image, 0.1, 5), 1)[0]
    payload = encoder.payload(encoder.project(features, image.grid), image)
    return sum(array.nbytes for array in payload.values())


def _settle(engine: SmoothingEngine) -> None:
    """Until the engine has looked again and found nothing to draw."""
    engine._worker.call(lambda: None).result(30)
    engine._worker.call(lambda: None).result(30)
