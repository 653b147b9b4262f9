"""Images whose sketch would be too large have their spread left out, before anything is drawn, and all of α for ρ."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from fs_runtime.engine import SmoothingEngine, SmoothingResult
from fs_runtime.options import Stage
from fs_runtime.smoothing.feature_map import FeatureMap
from tests.unit.fs_runtime.engine.conftest import Ask, WatchedSmoother

SEED = 5
Limited = Callable[[int], SmoothingEngine]


@pytest.fixture
def limited(smoother: WatchedSmoother) -> Iterator[Limited]:
    """Engines with a cache and a ceiling."""
    made = []

    def make(max_sketch_bytes: int) -> SmoothingEngine:
        made.append(SmoothingEngine(smoother, batch_size=8, cache_bytes=2**26, max_sketch_bytes=max_sketch_bytes))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def sketch_bytes(smoother: WatchedSmoother, picture: NDArray[np.uint8], stage: Stage = "encoder") -> int:
    """What the sketch comes to, by drawing more samples than it has vectors."""
    state = smoother.start(smoother.encoder.prepare(picture), 0.1, SEED, FeatureMap(stage), spectral=True)
    sizes = []
    for _ in range(70):
        smoother.step([(state, 1)])
        assert state.sketch is not None
        sizes.append(state.sketch.nbytes)
    return max(sizes)


def get(engine: SmoothingEngine, ask: Ask, **options: object) -> SmoothingResult:
    return engine.submit(*ask(spectral=True, **options)).result(60)


@pytest.mark.parametrize("stage", ["encoder", "projector"])
def test_the_size_of_the_sketch_decides(
    limited: Limited, smoother: WatchedSmoother, ask: Ask, picture: NDArray[np.uint8], stage: Stage
) -> None:
    # It has 63 vectors at most between batches of one, and room for one more within.
    size = sketch_bytes(smoother, picture, stage) // 63 * 64
    options = {"seed": SEED, "feature_map": FeatureMap(stage)}
    kept = get(limited(size), ask, **options)
    assert kept.spread is not None
    assert (kept.terms.alphas.norm, kept.terms.alphas.spread) == pytest.approx((0.025, 0.025))
    left_out = get(limited(size - 1), ask, **options)
    assert left_out.spread is None
    assert left_out.spread_estimate is None
    assert (left_out.terms.alphas.norm, left_out.terms.alphas.spread) == (pytest.approx(0.05), 0)
    # It is the certificate of a request that did not ask for the spread.
    plain = limited(size - 1).submit(*ask(**options)).result(60)
    assert left_out.norm_lower == pytest.approx(plain.norm_lower, abs=1e-6)
    assert left_out.norm_lower > kept.norm_lower
    np.testing.assert_allclose(left_out.payload["image_embeds"], kept.payload["image_embeds"], atol=1e-4)


def test_answers_from_the_cache_leave_it_out_too(limited: Limited, smoother: WatchedSmoother, ask: Ask) -> None:
    engine = limited(1)
    first, second, more = get(engine, ask), get(engine, ask), get(engine, ask, samples=50)
    assert (first.cache, second.cache, more.cache) == ("miss", "hit", "extended")
    assert first.norm_lower == second.norm_lower
    for result in (first, second, more):
        assert result.spread is None
        assert result.terms.alphas.spread == 0
    assert smoother.drawn == 50


def test_requests_in_flight_together_leave_it_out_together(
    limited: Limited, smoother: WatchedSmoother, ask: Ask
) -> None:
    engine = limited(1)
    smoother.gate.clear()
    futures = [engine.submit(*ask(spectral=True, samples=samples)) for samples in (20, 30)]
    smoother.gate.set()
    few, many = (future.result(60) for future in futures)
    assert (few.spread, many.spread, few.seed) == (None, None, many.seed)
    assert (few.terms.alphas.spread, many.terms.alphas.spread) == (0, 0)
