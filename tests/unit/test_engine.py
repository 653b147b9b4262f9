import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fs_runtime.certificate import tight_similarity
from fs_runtime.encoders import VisionEncoder
from fs_runtime.engine import (
    EngineClosedError,
    EngineOverloadedError,
    SmoothingEngine,
    SmoothingError,
    SmoothingRequest,
)
from fs_runtime.query import CertificateQuery
from fs_runtime.smoothing import FeatureMap, InnerProducts, Smoother, SmoothingState
from fs_runtime.spread_sketch import SpreadSketch


class WatchedSmoother(Smoother):
    """Records who was in which batch; can be held up, and told to fail."""

    def __init__(self, encoder: VisionEncoder) -> None:
        super().__init__(encoder)
        self.batches: list[dict[float, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failing_sigma: float | None = None
        self.memory: int | None = None

    def step(self, parts: Sequence[tuple[SmoothingState, int]]) -> list[InnerProducts]:
        self.gate.wait(10)
        if self.memory is not None and sum(count for _, count in parts) > self.memory:
            raise torch.OutOfMemoryError("too much")
        if any(state.sigma == self.failing_sigma for state, _ in parts):
            raise RuntimeError("this image breaks the encoder")
        self.batches.append({state.sigma: count for state, count in parts})
        return super().step(parts)


@pytest.fixture
def smoother(encoder: VisionEncoder) -> WatchedSmoother:
    return WatchedSmoother(encoder)


@pytest.fixture
def engine(smoother: WatchedSmoother) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(smoother, batch_size=8, max_queued_samples=200)
    yield engine
    smoother.gate.set()
    engine.close()


def asked(picture: NDArray[np.uint8], sigma: float = 0.1, samples: int = 20, **options: object) -> SmoothingRequest:
    return SmoothingRequest(picture, sigma, samples, 0.95, **options)  # type: ignore[arg-type]


def test_result_has_what_was_asked(engine: SmoothingEngine, picture: NDArray[np.uint8]) -> None:
    result = engine.submit(asked(picture)).result(30)
    assert result.samples == 20
    assert isinstance(result.norm_lower, float)
    assert 0 < result.norm_lower < 1
    assert result.payload["image_embeds"].shape == (16, 64)
    assert result.token_grids == ((4, 4),)
    by_token = engine.submit(asked(picture, granularity="token")).result(30)
    assert np.shape(by_token.norm_lower) == np.shape(by_token.norm_estimate) == (16,)


def test_same_seed_same_result_whatever_else_is_in_the_batch(
    engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8]
) -> None:
    alone = engine.submit(asked(picture, seed=5)).result(30)
    smoother.gate.clear()
    futures = [engine.submit(asked(picture, sigma)) for sigma in (0.2, 0.3)]
    among = engine.submit(asked(picture, seed=5))
    smoother.gate.set()
    for future in futures:
        future.result(30)
    assert max(map(len, smoother.batches)) == 3
    np.testing.assert_allclose(among.result(30).payload["image_embeds"], alone.payload["image_embeds"], atol=1e-4)
    assert among.result().norm_lower == pytest.approx(alone.norm_lower, abs=1e-5)
    assert engine.submit(asked(picture, seed=6)).result(30).norm_lower != alone.norm_lower


def test_fresh_requests_have_fresh_seeds(engine: SmoothingEngine, picture: NDArray[np.uint8]) -> None:
    assert engine.submit(asked(picture)).result(30).seed != engine.submit(asked(picture)).result(30).seed


def test_a_small_request_is_not_starved_by_a_large_one(
    engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8]
) -> None:
    smoother.gate.clear()
    large = engine.submit(asked(picture, 0.1, 100))
    small = engine.submit(asked(picture, 0.2, 8))
    smoother.gate.set()
    small.result(30)
    assert not large.done()
    large.result(30)
    # Two shared batches of four each, from the first or second batch on; the large one takes what the small one leaves.
    assert [batch for batch in smoother.batches[:3] if 0.2 in batch] == [{0.1: 4, 0.2: 4}] * 2
    assert {sum(batch.values()) for batch in smoother.batches[:-1]} == {8}


def test_a_failing_image_fails_alone(
    engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8]
) -> None:
    smoother.failing_sigma = 0.2
    smoother.gate.clear()
    futures = {sigma: engine.submit(asked(picture, sigma)) for sigma in (0.1, 0.2, 0.3)}
    smoother.gate.set()
    with pytest.raises(SmoothingError, match="RuntimeError"):
        futures[0.2].result(30)
    assert futures[0.1].result(30).samples == futures[0.3].result(30).samples == 20
    assert engine.alive


def test_out_of_memory_halves_the_batch_and_goes_on(
    engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8]
) -> None:
    whole = engine.submit(asked(picture, seed=3)).result(30)
    smoother.memory = 3
    result = engine.submit(asked(picture, seed=3)).result(30)
    assert result.samples == 20
    np.testing.assert_allclose(result.payload["image_embeds"], whole.payload["image_embeds"], atol=1e-4)


def test_a_cancelled_request_stops_costing(
    engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8]
) -> None:
    async def ask_and_leave() -> None:
        task = asyncio.create_task(engine.smooth(asked(picture, 0.4, 100)))
        while not engine.queued_samples:  # noqa: ASYNC110 (the engine is no asyncio object)
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    smoother.gate.clear()
    asyncio.run(ask_and_leave())
    other = engine.submit(asked(picture, 0.1))
    smoother.gate.set()
    assert other.result(30).samples == 20
    assert sum(batch.get(0.4, 0) for batch in smoother.batches) <= 8  # at most the batch that was under way
    assert engine.queued_samples == 0


def test_the_queue_is_bounded(engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8]) -> None:
    smoother.gate.clear()
    first = engine.submit(asked(picture, samples=190))
    with pytest.raises(EngineOverloadedError):
        engine.submit(asked(picture, samples=20))
    smoother.gate.set()
    first.result(30)
    assert engine.submit(asked(picture, samples=250)).result(30).samples == 250  # alone, a large one is let in


def test_close_fails_what_waits_and_refuses_more(
    engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8]
) -> None:
    smoother.gate.clear()
    waiting = engine.submit(asked(picture, samples=150))
    closer = threading.Thread(target=engine.close)
    closer.start()
    time.sleep(0.05)
    smoother.gate.set()
    closer.join(30)
    with pytest.raises(EngineClosedError):
        waiting.result(30)
    with pytest.raises(EngineClosedError):
        engine.submit(asked(picture))
    assert not engine.alive


def test_when_the_scheduler_itself_fails_nobody_waits_for_ever(
    engine: SmoothingEngine, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr(engine, "_next_batch", broken)
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    with pytest.raises(EngineClosedError):
        engine.submit(asked(picture)).result(30)
    engine._thread.join(10)
    assert not engine.alive


def test_adaptive_sampling_ends_when_the_similarity_is_certified(
    engine: SmoothingEngine, picture: NDArray[np.uint8]
) -> None:
    def until(similarity: float) -> CertificateQuery:
        return CertificateQuery(radius=0.01, min_similarity=similarity)

    full = engine.submit(asked(picture, 0.1, 160, seed=1)).result(30)
    assert (full.samples, full.ended) == (160, "samples")
    reached = engine.submit(asked(picture, 0.1, 160, seed=1, until=until(0.5))).result(30)
    assert reached.ended == "reached"
    assert reached.samples < 160
    assert tight_similarity(float(np.min(reached.norm_lower)), 0.01, 0.1) >= 0.5
    given_up = engine.submit(asked(picture, 0.1, 160, seed=1, until=until(0.9999999))).result(30)
    assert given_up.ended == "out_of_reach"
    assert given_up.samples < 160
    by_token = engine.submit(asked(picture, 0.1, 160, granularity="token", until=until(0.2))).result(30)
    assert by_token.ended == "reached"


@pytest.mark.parametrize(("sigma", "samples"), [(-0.1, 1), (float("nan"), 1), (float("inf"), 1), (0.1, 0)])
def test_values_out_of_range(engine: SmoothingEngine, picture: NDArray[np.uint8], sigma: float, samples: int) -> None:
    with pytest.raises(ValueError, match=r"sigma|samples"):
        engine.submit(asked(picture, sigma, samples))


def test_an_image_that_loses_its_sketch_goes_on_without_and_no_other_counts_twice(
    engine: SmoothingEngine, picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = SpreadSketch.update, []

    def failing(self: SpreadSketch, deviations: torch.Tensor) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("too much")
        update(self, deviations)

    monkeypatch.setattr(SpreadSketch, "update", failing)
    requests = [asked(picture, sigma, spectral=True, seed=3) for sigma in (0.1, 0.2)]
    results = [future.result(60) for future in [engine.submit(request) for request in requests]]
    assert [result.samples for result in results] == [20, 20]
    spreads = sorted(result.spread.across for result in results if result.spread)
    assert spreads[0] < 1
    assert spreads[1] == 1.0  # nothing is known, which always holds
    assert sorted(result.spread_estimate is None for result in results) == [False, True]
    monkeypatch.undo()
    again = engine.submit(requests[0]).result(60)
    assert results[0].norm_lower == pytest.approx(again.norm_lower, abs=1e-6)


def test_all_samples_drawn_is_no_early_end(engine: SmoothingEngine, picture: NDArray[np.uint8]) -> None:
    until = CertificateQuery(radius=0.001, min_similarity=0.8)  # certain to be out of reach only at the very end
    result = engine.submit(asked(picture, samples=8, until=until)).result(60)
    assert result.samples == 8
    assert result.ended in ("samples", "reached")


def test_images_that_cannot_share_batches_take_turns(
    engine: SmoothingEngine, smoother: WatchedSmoother, picture: NDArray[np.uint8]
) -> None:
    smoother.gate.clear()
    large = engine.submit(asked(picture, 0.1, samples=160))
    small = engine.submit(asked(picture, 0.2, samples=4, feature_map=FeatureMap("projector")))
    smoother.gate.set()
    small.result(60)
    assert not large.done()
    assert sum(batch.get(0.1, 0) for batch in smoother.batches) < 80
    large.cancel()


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1 - 1e-13])
def test_confidence_beyond_double_precision_is_refused(
    engine: SmoothingEngine, picture: NDArray[np.uint8], confidence: float
) -> None:
    with pytest.raises(ValueError, match="confidence must lie"):
        engine.submit(SmoothingRequest(picture, 0.1, 20, confidence))
