"""Faults of images, of memory, of the scheduler itself; and shutting down. None may cost another its result."""

import logging
import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from fs_runtime.encoders import VisionEncoder
from fs_runtime.engine import (
    DeviceLostError,
    EngineClosedError,
    SmoothingEngine,
    SmoothingError,
    SmoothingResult,
    worker,
)
from fs_runtime.engine.fair_queue import FairQueue
from fs_runtime.engine.job import Job
from fs_runtime.smoothing.spread_sketch import SpreadSketch
from fs_runtime.system.gpu import device_works
from tests.unit.fs_runtime.engine.conftest import Ask, WatchedSmoother


def alone(engine: SmoothingEngine, ask: Ask, **options: object) -> SmoothingResult:
    return engine.submit(*ask(**options)).result(30)


def test_a_failing_image_fails_alone(engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    smoother.failing_sigma = 0.2
    smoother.gate.clear()
    futures = {sigma: engine.submit(*ask(sigma)) for sigma in (0.1, 0.2, 0.3)}
    smoother.gate.set()
    with pytest.raises(SmoothingError, match="RuntimeError"):
        futures[0.2].result(30)
    assert futures[0.1].result(30).samples == futures[0.3].result(30).samples == 20
    assert engine.alive


def test_an_image_that_loses_its_sketch_goes_on_without_and_no_other_counts_twice(
    engine: SmoothingEngine, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, calls = SpreadSketch.update, []

    def failing(self: SpreadSketch, deviations: torch.Tensor) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("too much")
        update(self, deviations)

    monkeypatch.setattr(SpreadSketch, "update", failing)
    requests = [ask(sigma, spectral=True, seed=3) for sigma in (0.1, 0.2)]
    results = [future.result(60) for future in [engine.submit(*request) for request in requests]]
    assert [result.samples for result in results] == [20, 20]
    spreads = sorted(result.spread.across for result in results if result.spread)
    assert spreads[0] < 1
    assert spreads[1] == 1.0  # nothing is known, which always holds
    assert sorted(result.spread_estimate is None for result in results) == [False, True]
    monkeypatch.undo()
    again = engine.submit(*requests[0]).result(60)
    assert results[0].norm_lower == pytest.approx(again.norm_lower, abs=1e-6)


def test_out_of_memory_halves_the_batch_is_remembered_and_loses_nothing(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    whole = {sigma: alone(engine, ask, sigma=sigma, seed=3) for sigma in (0.1, 0.2)}
    smoother.memory = 3
    smoother.batches.clear()
    futures = {sigma: engine.submit(*ask(sigma, seed=3)) for sigma in (0.1, 0.2)}
    for sigma, future in futures.items():
        result = future.result(30)
        assert result.samples == 20
        np.testing.assert_allclose(result.payload["image_embeds"], whole[sigma].payload["image_embeds"], atol=1e-4)
        assert result.norm_lower == pytest.approx(whole[sigma].norm_lower, abs=1e-6)
    assert engine.out_of_memory_events == 2  # 8, then 4; from then on nobody tries again
    assert {sum(batch.values()) for batch in smoother.batches} == {2}
    alone(engine, ask)
    assert engine.out_of_memory_events == 2


def test_an_image_that_does_not_fit_even_once_fails_alone(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    smoother.memory = 0
    with pytest.raises(SmoothingError, match="OutOfMemoryError"):
        alone(engine, ask)
    smoother.memory = None
    assert alone(engine, ask).samples == 20


def test_a_failure_after_the_samples_were_added_counts_none_twice(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {sigma: alone(engine, ask, sigma=sigma, seed=3, samples=4) for sigma in (0.1, 0.2)}
    add = Job.add

    def failing(job: Job, products: object, encoder: VisionEncoder) -> None:
        if job.first.terms.sigma == 0.2:
            raise RuntimeError("the copy to the host failed")
        add(job, products, encoder)  # type: ignore[arg-type]

    monkeypatch.setattr(Job, "add", failing)
    smoother.hold()
    engine.submit(*ask(0.9, 1))  # holds the device, so that the two others are there together
    assert smoother.at_gate.wait(30)
    futures = {sigma: engine.submit(*ask(sigma, 4, seed=3)) for sigma in (0.2, 0.1)}
    smoother.gate.set()
    with pytest.raises(SmoothingError):
        futures[0.2].result(30)
    assert futures[0.1].result(30).samples == 4
    assert futures[0.1].result().norm_lower == pytest.approx(before[0.1].norm_lower, abs=1e-6)
    assert any({0.1, 0.2} <= batch.keys() for batch in smoother.batches)


def test_a_fault_of_the_scheduler_fails_those_concerned_and_the_thread_goes_on(
    engine: SmoothingEngine, ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(queue: object, budget: int) -> None:
        raise RuntimeError("bug")

    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL):
        patch.setattr(FairQueue, "next_batch", broken)
        with pytest.raises(SmoothingError, match="RuntimeError"):
            alone(engine, ask)
    assert engine.scheduler_faults == 1
    assert engine.alive
    assert engine.queued_images == 0
    assert alone(engine, ask).samples == 20


def test_the_heart_beats_while_idle_and_stops_while_a_batch_hangs(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    alone(engine, ask)
    assert engine.seconds_since_heartbeat < 5
    smoother.gate.clear()
    hanging = engine.submit(*ask())
    threading.Event().wait(1.6)  # longer than the thread ever sleeps
    assert engine.seconds_since_heartbeat > 1.2
    smoother.gate.set()
    hanging.result(30)


def test_a_lost_device_ends_every_request_and_the_thread(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    smoother.gate.clear()
    futures = [engine.submit(*ask(sigma)) for sigma in (0.1, 0.2, 0.3)]
    smoother.failing_sigma = 0.2
    monkeypatch.setattr(worker, "device_works", lambda device: False)
    smoother.gate.set()
    for future in futures:
        with pytest.raises(DeviceLostError, match="does not compute"):
            future.result(30)
    assert engine.device_lost
    for _ in range(1000):  # the thread ends right after the last request
        if not engine.alive:
            break
        threading.Event().wait(0.01)
    assert not engine.alive
    assert engine.queued_images == 0
    with pytest.raises(DeviceLostError):
        engine.submit(*ask())


def test_the_cpu_is_never_lost() -> None:
    assert device_works(torch.device("cpu"))


def test_closing_under_load_ends_every_request(engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    smoother.gate.clear()
    futures: list[Future[SmoothingResult]] = [engine.submit(*ask(0.1 + i / 100, 6)) for i in range(25)]
    closer = threading.Thread(target=engine.close)
    closer.start()
    while not engine._worker.closed:
        threading.Event().wait(0.005)
    smoother.gate.set()
    closer.join(30)
    outcomes = [future.exception(1) for future in futures]
    assert all(error is None or isinstance(error, EngineClosedError) for error in outcomes)
    assert any(outcomes)
    assert not engine.alive
    with pytest.raises(EngineClosedError):
        engine.submit(*ask())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_for_whatever_reason_leaves_nobody_waiting(
    engine: SmoothingEngine, smoother: WatchedSmoother, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ending(concerned: object) -> None:
        raise SystemExit

    smoother.gate.clear()
    waiting = engine.submit(*ask())
    monkeypatch.setattr(engine._worker, "_round", ending)
    smoother.gate.set()
    with pytest.raises(EngineClosedError):
        waiting.result(30)
    engine._worker._thread.join(10)
    assert not engine.alive
    with pytest.raises(EngineClosedError):
        engine.submit(*ask())
