import asyncio
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from fs_runtime.certificate import tight_similarity
from fs_runtime.encoders import VisionEncoder
from fs_runtime.engine import (
    DeadlineExceededError,
    DeadlineUnreachableError,
    EngineOverloadedError,
    SmoothingEngine,
)
from fs_runtime.options import CertificateQuery
from fs_runtime.smoothing.feature_map import FeatureMap
from tests.asked import smoothed
from tests.unit.fs_runtime.engine.conftest import Ask, WatchedSmoother


def test_result_has_what_was_asked(engine: SmoothingEngine, ask: Ask) -> None:
    result = engine.submit(*ask()).result(30)
    assert result.samples == 20
    assert isinstance(result.norm_lower, float)
    assert 0 < result.norm_lower < 1
    assert result.payload["image_embeds"].shape == (16, 64)
    assert result.token_grids == ((4, 4),)
    by_token = engine.submit(*ask(granularity="token")).result(30)
    assert np.shape(by_token.norm_lower) == np.shape(by_token.norm_estimate) == (16,)


def test_same_seed_same_result_whatever_else_is_in_the_batch(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    alone = engine.submit(*ask(seed=5)).result(30)
    smoother.gate.clear()
    futures = [engine.submit(*ask(sigma, 19)) for sigma in (0.2, 0.3)]
    among = engine.submit(*ask(seed=5))
    smoother.gate.set()
    for future in futures:
        future.result(30)
    assert any(len(batch) > 1 and 0.1 in batch for batch in smoother.batches)
    np.testing.assert_allclose(among.result(30).payload["image_embeds"], alone.payload["image_embeds"], atol=1e-4)
    assert among.result().norm_lower == pytest.approx(alone.norm_lower, abs=1e-5)
    assert engine.submit(*ask(seed=6)).result(30).norm_lower != alone.norm_lower


def test_fresh_requests_have_fresh_seeds(engine: SmoothingEngine, ask: Ask) -> None:
    assert engine.submit(*ask()).result(30).seed != engine.submit(*ask()).result(30).seed


def test_a_small_request_is_not_starved_by_a_large_one(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    smoother.gate.clear()
    large = engine.submit(*ask(0.1, 100))
    small = engine.submit(*ask(0.2, 8))
    smoother.gate.set()
    small.result(30)
    assert not large.done()
    large.result(30)
    assert {0.2: 8} in smoother.batches[:3]  # the large one had at most the batch under way and one turn
    assert {sum(batch.values()) for batch in smoother.batches[:-1]} == {8}


def test_a_cancelled_request_stops_costing(engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    request, pixels = ask(0.4, 100)

    async def decode() -> NDArray[np.uint8]:
        return pixels

    async def ask_and_leave() -> None:
        task = asyncio.create_task(smoothed(engine, request, decode))
        while not engine.queued_samples:  # noqa: ASYNC110 (the engine is no asyncio object)
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    smoother.gate.clear()
    asyncio.run(ask_and_leave())
    other = engine.submit(*ask(0.1))
    smoother.gate.set()
    assert other.result(30).samples == 20
    assert sum(batch.get(0.4, 0) for batch in smoother.batches) <= 8  # at most the batch that was under way
    assert engine.queued_samples == 0


def test_the_queue_is_bounded(engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    smoother.gate.clear()
    first = engine.submit(*ask(samples=190))
    with pytest.raises(EngineOverloadedError):
        engine.submit(*ask(samples=20))
    smoother.gate.set()
    first.result(30)
    assert engine.submit(*ask(samples=250)).result(30).samples == 250  # alone, a large one is let in


def test_adaptive_sampling_ends_when_the_similarity_is_certified(engine: SmoothingEngine, ask: Ask) -> None:
    def until(similarity: float) -> CertificateQuery:
        return CertificateQuery(radius=0.01, min_similarity=similarity)

    full = engine.submit(*ask(0.1, 160, seed=1)).result(30)
    assert (full.samples, full.ended) == (160, "samples")
    reached = engine.submit(*ask(0.1, 160, seed=1, until=until(0.5))).result(30)
    assert reached.ended == "reached"
    assert reached.samples < 160
    assert tight_similarity(float(np.min(reached.norm_lower)), 0.01, 0.1) >= 0.5
    given_up = engine.submit(*ask(0.1, 160, seed=1, until=until(0.9999999))).result(30)
    assert given_up.ended == "out_of_reach"
    assert given_up.samples < 160
    by_token = engine.submit(*ask(0.1, 160, granularity="token", until=until(0.2))).result(30)
    assert by_token.ended == "reached"


@pytest.mark.parametrize(("sigma", "samples"), [(-0.1, 1), (float("nan"), 1), (float("inf"), 1), (0.1, 0)])
def test_values_out_of_range(engine: SmoothingEngine, ask: Ask, sigma: float, samples: int) -> None:
    with pytest.raises(ValueError, match=r"sigma|samples"):
        engine.submit(*ask(sigma, samples))


def test_all_samples_drawn_is_no_early_end(engine: SmoothingEngine, ask: Ask) -> None:
    until = CertificateQuery(radius=0.001, min_similarity=0.8)  # certain to be out of reach only at the very end
    result = engine.submit(*ask(samples=8, until=until)).result(60)
    assert result.samples == 8
    assert result.ended in ("samples", "reached")


def test_images_that_cannot_share_batches_take_turns(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    smoother.gate.clear()
    large = engine.submit(*ask(0.1, samples=160))
    small = engine.submit(*ask(0.2, samples=4, feature_map=FeatureMap("projector")))
    smoother.gate.set()
    small.result(60)
    assert not large.done()
    assert sum(batch.get(0.1, 0) for batch in smoother.batches) < 80
    large.cancel()


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1 - 1e-13])
def test_confidence_beyond_double_precision_is_refused(engine: SmoothingEngine, ask: Ask, confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence must lie"):
        engine.submit(*ask(confidence=confidence))


def test_tenants_share_the_device(engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    smoother.gate.clear()
    greedy = [engine.submit(*ask(0.1, 40, tenant="greedy")) for _ in range(4)]
    modest = engine.submit(*ask(0.2, 24, tenant="modest"))
    smoother.gate.set()
    modest.result(30)
    assert sum(batch.get(0.1, 0) for batch in smoother.batches) <= 24 + 2 * 8
    for future in greedy:
        future.result(30)


def test_a_deadline_that_cannot_be_met_is_refused_with_the_estimate(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    engine.warm_up()
    smoother.gate.clear()
    waiting = engine.submit(*ask(samples=150))
    assert engine.estimated_wait
    with pytest.raises(DeadlineUnreachableError) as refused:
        engine.submit(*ask(0.2, samples=40, timeout=1e-6))
    assert refused.value.estimated_wait
    assert 0 < refused.value.estimated_wait < engine.estimated_wait  # it would not wait for all of the large one
    in_time = engine.submit(*ask(0.3, samples=40, timeout=60))
    smoother.gate.set()
    assert in_time.result(30).samples == waiting.result(30).samples - 110


def test_what_is_late_stops_costing(engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    smoother.gate.clear()
    first = engine.submit(*ask(0.1, 16))
    late = engine.submit(*ask(0.2, 100, timeout=0.2))
    threading.Timer(0.3, smoother.gate.set).start()
    with pytest.raises(DeadlineExceededError, match=r"0\.2 s"):
        late.result(30)
    assert first.result(30).samples == 16
    assert engine.queued_images == 0
    assert sum(batch.get(0.2, 0) for batch in smoother.batches) <= 8


def test_the_number_of_images_is_bounded(encoder: VisionEncoder, ask: Ask) -> None:
    smoother = WatchedSmoother(encoder)
    engine = SmoothingEngine(smoother, batch_size=8, max_queued_images=2)
    smoother.gate.clear()
    try:
        waiting = [engine.submit(*ask(samples=2)) for _ in range(2)]
        with pytest.raises(EngineOverloadedError, match="images"):
            engine.submit(*ask(samples=2))
        smoother.gate.set()
        assert [future.result(30).samples for future in waiting] == [2, 2]
    finally:
        smoother.gate.set()
        engine.close()


def test_adaptive_sampling_looks_when_it_may_end_and_leaves_the_rest_of_the_batch_to_others(
    encoder: VisionEncoder, ask: Ask
) -> None:
    smoother = WatchedSmoother(encoder)
    engine = SmoothingEngine(smoother, batch_size=32)
    smoother.hold()
    try:
        engine.submit(*ask(0.9, 1))  # holds the device, so that the two others are there together
        assert smoother.at_gate.wait(30)
        until = CertificateQuery(radius=0.01, min_similarity=0.5)
        adaptive = engine.submit(*ask(0.1, 1000, until=until))
        fixed = engine.submit(*ask(0.2, 400))
        smoother.gate.set()
        result = adaptive.result(30)
        assert fixed.result(30).samples == 400
        assert result.ended == "reached"
        assert result.samples % 32 != 0  # no whole batches
        shared = [batch for batch in smoother.batches if {0.1, 0.2} <= batch.keys()]
        assert shared
        assert all(sum(batch.values()) == 32 for batch in shared[:-1])  # full, until one of the two ends
    finally:
        smoother.gate.set()
        engine.close()
