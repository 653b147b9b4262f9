"""What goes into the engine and comes out of it: pixels that are let go, and plain values."""

import asyncio
import dataclasses
import pickle
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from fs_runtime.encoders import VisionEncoder
from fs_runtime.engine import (
    CertificateTerms,
    DeadlineExceededError,
    DeadlineUnreachableError,
    DeviceLostError,
    EngineClosedError,
    EngineOverloadedError,
    Recall,
    SmoothingEngine,
    SmoothingError,
    SmoothingRequest,
    SmoothingResult,
)
from fs_runtime.options import CertificateQuery
from fs_runtime.smoothing.smoother import Smoother
from tests.asked import asked, smoothed
from tests.unit.fs_runtime.engine.conftest import Ask, WatchedSmoother


@pytest.mark.parametrize("way", ["submit", "smooth"])
def test_pixels_are_let_go_before_the_first_sample(
    engine: SmoothingEngine, smoother: WatchedSmoother, way: str
) -> None:
    def draw() -> NDArray[np.uint8]:
        made = np.random.default_rng(3).integers(0, 256, (70, 90, 3), dtype=np.uint8)
        alive.append(weakref.ref(made))
        return made

    async def decode() -> NDArray[np.uint8]:
        return draw()

    def ask() -> list[SmoothingResult]:
        if way == "submit":
            futures = [engine.submit(*asked(draw(), 0.1, 8, 0.95, seed=seed)) for seed in range(3)]
            return [future.result(30) for future in futures]

        async def together() -> list[SmoothingResult]:
            requests = [SmoothingRequest(CertificateTerms(0.1, 0.95), 8, seed=seed) for seed in range(3)]
            return await asyncio.gather(*(smoothed(engine, request, decode) for request in requests))

        return asyncio.run(together())

    alive: list[weakref.ref[NDArray[np.uint8]]] = []
    smoother.gate.clear()
    with ThreadPoolExecutor(1) as thread:
        results = thread.submit(ask)
        end = time.monotonic() + 30
        while engine.queued_images < 3 or any(reference() is not None for reference in alive):
            assert time.monotonic() < end
            time.sleep(0.005)
        assert len(alive) == 3
        assert not results.done()
        smoother.gate.set()
        bounds = [result.norm_lower for result in results.result(30)]
    assert bounds == [result.norm_lower for result in ask()]


@pytest.mark.parametrize("leave", ["prepared", "failed", "cancelled"])
def test_few_images_are_decoded_at_once(encoder: VisionEncoder, leave: str) -> None:
    """Whatever becomes of those before, the next gets its place."""
    engine = SmoothingEngine(Smoother(encoder), batch_size=8)
    decoding = [0, 0]  # at once, and most at once

    async def one(number: int) -> None:
        async def decode() -> NDArray[np.uint8]:
            decoding[0] += 1
            decoding[1] = max(decoding)
            try:
                await asyncio.sleep(0.01)
                if leave == "failed":
                    raise ValueError("no picture")
                return np.full((70, 90, 3), number, np.uint8)
            finally:
                decoding[0] -= 1

        task = asyncio.create_task(smoothed(engine, SmoothingRequest(CertificateTerms(0.1, 0.95), 2, seed=1), decode))
        if leave == "cancelled":
            await asyncio.sleep(0.005)
            task.cancel()
        await asyncio.wait([task])
        assert (task.cancelled(), not task.cancelled() and task.exception() is not None) == (
            leave == "cancelled",
            leave == "failed",
        )

    async def crowd() -> None:
        await asyncio.gather(*(one(number) for number in range(20)))

    try:
        asyncio.run(crowd())
        assert 1 <= decoding[1] <= 4
        assert not engine._preparing | engine._working
        assert engine.queued_images == 0
    finally:
        engine.close()


def test_what_crosses_the_border_is_a_plain_value(cached: SmoothingEngine, picture: NDArray[np.uint8]) -> None:
    request, pixels = asked(picture, 0.1, 8, until=CertificateQuery(0.05, "client", 0.9), image_id="a", tenant="t")
    assert pickle.loads(pickle.dumps(request)) == request

    async def far() -> tuple[SmoothingResult, Recall]:
        recall = await cached.recall(pickle.loads(pickle.dumps(request)))
        assert recall.result is None
        async with cached.place("t") as place:
            result = await cached.smooth(*pickle.loads(pickle.dumps((recall, pixels, place))))
        return result, await cached.recall(request)

    result, again = asyncio.run(far())
    copy = pickle.loads(pickle.dumps(again))
    assert copy.result.seed == result.seed == cached.submit(request, pixels).result(30).seed
    np.testing.assert_equal(dataclasses.asdict(copy.result), dataclasses.asdict(again.result))


@pytest.mark.parametrize(
    "error",
    [
        EngineOverloadedError("full", 1.5),
        DeadlineUnreachableError("late", 2.5),
        DeadlineExceededError("late"),
        EngineClosedError("closed"),
        DeviceLostError("lost"),
        SmoothingError("failed"),
    ],
)
def test_errors_of_the_engine_pickle(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_without_an_image_id_nothing_can_be_recalled(cached: SmoothingEngine, ask: Ask) -> None:
    with pytest.raises(ValueError, match="image_id is missing"):
        asyncio.run(cached.recall(ask()[0]))


@pytest.mark.parametrize("moment", ["decoding", "waiting for a thread"])
def test_closing_in_the_middle_says_that_the_engine_is_closed(
    encoder: VisionEncoder, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    engine = SmoothingEngine(Smoother(encoder), batch_size=8)
    request, pixels = asked(picture, seed=1)
    go = threading.Event()

    async def one() -> None:
        recall = await engine.recall(request)
        async with engine.place("") as place:
            if moment == "decoding":
                engine.close()
                await engine.smooth(recall, pixels, place)
                return
            busy = [engine._preparers.submit(go.wait, 30) for _ in range(engine._preparers._max_workers)]
            work = asyncio.create_task(engine.smooth(recall, pixels, place))
            await asyncio.sleep(0.1)
            engine.close()
            go.set()
            assert all(one.result(30) for one in busy)
            await work

    try:
        with pytest.raises(EngineClosedError):
            asyncio.run(one())
        assert not engine._preparing | engine._working
    finally:
        go.set()
        engine.close()


def test_a_cancelled_task_is_cancelled(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    engine = SmoothingEngine(Smoother(encoder), batch_size=8)
    request, pixels = asked(picture, seed=1)
    go = threading.Event()

    async def one() -> None:
        recall = await engine.recall(request)
        async with engine.place("") as place:
            for _ in range(engine._preparers._max_workers):
                engine._preparers.submit(go.wait, 30)
            work = asyncio.create_task(engine.smooth(recall, pixels, place))
            await asyncio.sleep(0.1)
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    try:
        asyncio.run(one())
    finally:
        go.set()
        engine.close()
