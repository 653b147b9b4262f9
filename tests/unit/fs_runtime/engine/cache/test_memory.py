"""Results from the cache against results from fresh draws, and what is never shared."""

import asyncio
import os
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from fs_runtime.encoders import VisionEncoder
from fs_runtime.engine import CertificateTerms, SmoothingEngine, SmoothingError, SmoothingRequest, SmoothingResult
from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.origins import Origins, draws_name
from fs_runtime.engine.request import Origin
from fs_runtime.options import CertificateQuery
from fs_runtime.smoothing.feature_map import FeatureMap
from tests.asked import Asked, asked, smoothed
from tests.unit.fs_runtime.engine.conftest import Ask, WatchedSmoother


def get(engine: SmoothingEngine, request: Asked) -> SmoothingResult:
    return engine.submit(*request).result(30)


def same(one: SmoothingResult, other: SmoothingResult) -> None:
    """The same certificate and embeddings, to the device's arithmetic."""
    assert (one.samples, one.seed) == (other.samples, other.seed)
    np.testing.assert_allclose(one.norm_lower, other.norm_lower, atol=1e-6)
    for pair in ((one.norm_estimate, other.norm_estimate), (one.token_norm_lower, other.token_norm_lower)):
        assert (pair[0] is None) == (pair[1] is None)
        if pair[0] is not None and pair[1] is not None:
            np.testing.assert_allclose(*pair, atol=1e-5)
    assert (one.spread is None) == (other.spread is None)
    if one.spread and other.spread:
        assert one.spread.across == pytest.approx(other.spread.across, abs=1e-5)
        assert one.spread_estimate == pytest.approx(other.spread_estimate, abs=1e-6)
    np.testing.assert_allclose(one.payload["image_embeds"], other.payload["image_embeds"], atol=1e-4)


def test_a_second_equal_request_draws_nothing(cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    first = get(cached, ask(spectral=True))
    drawn = smoother.drawn
    second = get(cached, ask(spectral=True))
    assert (first.cache, second.cache) == ("miss", "hit")
    assert (first.drawn, second.drawn) == (20, 0)
    assert smoother.drawn == drawn == cached.samples_drawn == 20
    same(first, second)
    assert second.queue_seconds == second.smoothing_seconds == 0
    assert 0 < cached.cache_bytes <= 2**26
    assert cached.cached_images == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spectral": True},
        {"granularity": "token"},
        {"token_map": True, "spectral": True},
        {"feature_map": FeatureMap("projector")},
    ],
)
def test_more_samples_go_on_where_the_draws_ended_and_give_what_one_run_gives(
    cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask, options: dict[str, object]
) -> None:
    first = get(cached, ask(samples=11, **options))
    more = get(cached, ask(samples=50, **options))
    assert more.cache == "extended"
    assert smoother.drawn == 50
    assert (more.planned, more.max_samples, more.drawn) == (11, 50, 39)
    whole = get(cached, ask(samples=50, seed=first.seed, **options))
    assert whole.cache is None
    assert whole.planned == 50
    same(more, whole)
    again = get(cached, ask(samples=50, **options))
    assert again.cache == "hit"
    same(again, whole)
    fewer = get(cached, ask(samples=5, **options))  # all that is there counts
    assert (fewer.cache, fewer.samples, fewer.max_samples, fewer.ended) == ("hit", 50, 50, "samples")


def test_another_confidence_radius_or_wanted_similarity_costs_no_samples(
    cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    first = get(cached, ask(samples=120, spectral=True))
    for options in (
        {"confidence": 0.5},
        {"confidence": 0.9999},
        {"until": CertificateQuery(0.01, min_similarity=0.5)},
        {"until": CertificateQuery(0.02, "client", min_similarity=0.99999)},
    ):
        found = get(cached, ask(samples=120, spectral=True, **options))
        assert found.cache == "hit"
        same(found, get(cached, ask(samples=120, spectral=True, seed=first.seed, **{**options, "until": None})))
    assert get(cached, ask(samples=120, spectral=True, until=CertificateQuery(0.01, min_similarity=0.5))).ended == (
        "reached"
    )
    given_up = get(cached, ask(samples=120, spectral=True, until=CertificateQuery(0.05, min_similarity=0.9999999)))
    assert given_up.ended in ("samples", "out_of_reach")


def test_adaptive_sampling_goes_on_from_the_cache(cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    low, high = (CertificateQuery(radius, min_similarity=0.5) for radius in (0.01, 0.06))
    first = get(cached, ask(samples=400, until=low))
    assert first.ended == "reached"
    second = get(cached, ask(samples=400, until=high))
    assert second.cache == "extended"
    assert second.seed == first.seed
    assert first.samples < second.samples == smoother.drawn
    assert get(cached, ask(samples=400, until=low)).cache == "hit"


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "other"},
        {"sigma": 0.2},
        {"feature_map": FeatureMap("projector")},
        {"use_cache": False},
        {"seed": 7},
        {"image_id": "another file"},
    ],
)
def test_draws_of_something_else_are_not_shared(
    cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask, other: dict[str, object]
) -> None:
    first = get(cached, ask())
    found = get(cached, ask(**other))
    assert found.cache in ("miss", None)
    assert found.seed != first.seed
    assert smoother.drawn == 40
    assert get(cached, ask()).seed == first.seed


@pytest.mark.parametrize("other", [{"spectral": True}, {"granularity": "token"}, {"token_map": True}])
def test_what_else_is_computed_from_the_draws_is_so_from_the_same_ones(
    cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask, other: dict[str, object]
) -> None:
    first, found = get(cached, ask()), get(cached, ask(**other))
    assert (found.cache, found.seed, found.planned) == ("miss", first.seed, first.planned)
    assert smoother.drawn == 40
    assert [get(cached, ask(**options)).cache for options in ({}, other)] == ["hit", "hit"]


def test_token_bounds_of_another_confidence_are_of_the_same_draws(cached: SmoothingEngine, ask: Ask) -> None:
    first = get(cached, ask(granularity="token"))
    other = get(cached, ask(granularity="token", confidence=0.9))
    assert (other.cache, other.seed) == ("miss", first.seed)
    assert np.all(np.asarray(other.norm_lower) > first.norm_lower)
    assert get(cached, ask(granularity="token")).cache == "hit"


def test_another_picture_is_another_image(cached: SmoothingEngine, picture: NDArray[np.uint8]) -> None:
    first = get(cached, asked(picture, 0.1, 8, 0.95))
    changed = picture.copy()
    changed[0, 0, 0] ^= 1
    assert get(cached, asked(changed, 0.1, 8, 0.95)).seed != first.seed
    assert get(cached, asked(picture.copy(), 0.1, 8, 0.95)).cache == "hit"


def test_a_picture_that_is_known_by_its_id_is_not_decoded_again(
    cached: SmoothingEngine, picture: NDArray[np.uint8]
) -> None:
    decoded = []

    async def decode() -> NDArray[np.uint8]:
        decoded.append(1)
        return picture

    request = SmoothingRequest(CertificateTerms(0.1, 0.95), 8, image_id="sha256:file")
    assert [asyncio.run(smoothed(cached, request, decode)).cache for _ in range(3)] == ["miss", "hit", "hit"]
    assert len(decoded) == 1


def test_equal_requests_in_flight_share_one_job_and_leave_it_one_by_one(
    cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    smoother.gate.clear()
    first, second, longer = (cached.submit(*ask(samples=samples)) for samples in (40, 40, 64))
    assert cached.queued_images == 1
    assert cached.queued_samples == 64
    first.cancel()
    smoother.gate.set()
    assert (second.result(30).samples, second.result().cache) == (40, "hit")
    assert (longer.result(30).samples, longer.result().cache, longer.result().drawn) == (64, "extended", 24)
    assert second.result().seed == longer.result().seed
    assert smoother.drawn == 64
    assert cached.queued_images == 0


def test_a_job_that_all_have_left_ends(cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    smoother.gate.clear()
    futures = [cached.submit(*ask(samples=100)) for _ in range(3)]
    for future in futures:
        future.cancel()
    other = cached.submit(*ask(0.2, 8))
    smoother.gate.set()
    other.result(30)
    assert sum(batch.get(0.1, 0) for batch in smoother.batches) <= 8
    assert get(cached, ask(samples=100)).samples == 100


def test_nobody_gets_other_draws_by_leaving(cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    """Adaptive sampling answers soon where draws are lucky: who leaves when it does not must not try his luck again."""
    for left in range(3):
        smoother.gate.clear()
        future = cached.submit(*ask(samples=4000))
        smoother.gate.set()
        while smoother.drawn < 16 * (left + 1):
            time.sleep(0.001)
        future.cancel()
        while cached.queued_images:
            time.sleep(0.001)
    assert {get(cached, ask()).seed} == set(smoother.seeds)
    assert len(smoother.seeds) == 4


def test_draws_that_somebody_saw_are_kept_when_a_longer_request_for_them_is_cancelled(
    cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    smoother.gate.clear()
    short, long = cached.submit(*ask(samples=8)), cached.submit(*ask(samples=4000))
    smoother.gate.set()
    seen = short.result(30)
    smoother.gate.clear()
    long.cancel()
    smoother.gate.set()
    while cached.queued_images:
        time.sleep(0.005)
    again = cached.submit(*ask(samples=8)).result(30)
    assert (again.cache, again.seed) == ("hit", seen.seed)


def test_a_failing_job_fails_for_all_who_share_it_and_is_not_kept(
    cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask
) -> None:
    smoother.failing_sigma = 0.1
    smoother.gate.clear()
    futures = [cached.submit(*ask()) for _ in range(2)]
    smoother.gate.set()
    for future in futures:
        with pytest.raises(SmoothingError):
            future.result(30)
    smoother.failing_sigma = None
    again = get(cached, ask())
    assert again.cache == "miss"
    assert set(smoother.seeds) == {again.seed}  # values that are not finite are no reason for other draws


def test_many_tasks_at_once_get_one_answer(cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    async def crowd() -> list[SmoothingResult]:
        return await asyncio.gather(*(asyncio.wrap_future(cached.submit(*ask(samples=24))) for _ in range(20)))

    results = asyncio.run(crowd())
    assert len({result.seed for result in results}) == 1
    assert smoother.drawn == 24


@pytest.fixture
def tight(encoder: VisionEncoder) -> Iterator[SmoothingEngine]:
    """An engine whose cache has room for a few images only."""
    engine = SmoothingEngine(WatchedSmoother(encoder), batch_size=8, cache_bytes=16 * 100_000)
    yield engine
    engine.close()


def test_the_least_recently_used_image_goes_first(tight: SmoothingEngine, picture: NDArray[np.uint8]) -> None:
    def of(number: int) -> SmoothingResult:
        return get(tight, asked(picture + np.uint8(number), 0.1, 2, 0.95))

    first, second = of(0), of(1)
    kept = 2
    while tight.cached_images == kept:
        assert of(0).seed == first.seed
        of(kept)
        kept += 1
        assert kept < 200
    assert of(0).cache == "hit"
    again = of(1)
    assert (again.cache, again.seed) == ("miss", second.seed)  # pushing an image out is no way to other draws
    assert tight.cache_bytes <= 16 * 100_000


def test_origins_are_remembered_up_to_a_number(smoother: WatchedSmoother, ask: Ask) -> None:
    names = [draws_name(CacheKey.of(request, smoother, pixels=pixels)) for request, pixels in map(ask, (0.1, 0.2, 0.3))]
    origins, fresh = Origins(most=2), [Origin.fresh(8) for _ in names]
    for name, origin in zip(names[:2], fresh, strict=False):
        origins[name] = origin
    assert origins.get(names[0]) == fresh[0]
    origins[names[2]] = fresh[2]
    assert [origins.get(name) for name in names] == [fresh[0], None, fresh[2]]


def test_an_image_too_large_to_go_on_with_still_answers_and_starts_over_for_more(
    tight: SmoothingEngine, ask: Ask
) -> None:
    first = get(tight, ask(samples=200, spectral=True))  # its sketch alone takes more than a sixteenth
    assert get(tight, ask(samples=200, spectral=True)).cache == "hit"
    more = get(tight, ask(samples=201, spectral=True))
    assert (more.cache, more.samples, more.drawn) == ("miss", 201, 201)
    assert (more.seed, more.planned) == (first.seed, 200)  # the same draws again, so that both answers hold together


def test_without_noise_one_sample_is_kept(cached: SmoothingEngine, smoother: WatchedSmoother, ask: Ask) -> None:
    assert [get(cached, ask(0.0, 1)).cache for _ in range(2)] == ["miss", "hit"]
    assert smoother.drawn == 1


def test_a_closed_engine_does_not_answer_from_the_cache(cached: SmoothingEngine, ask: Ask) -> None:
    get(cached, ask())
    cached.close()
    with pytest.raises(RuntimeError, match="shut down"):
        cached.submit(*ask())


@pytest.mark.slow
def test_memory_stays_flat_over_ten_thousand_requests(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    engine = SmoothingEngine(WatchedSmoother(encoder), batch_size=32, cache_bytes=2**24)
    resident = []
    try:
        for start in range(0, 10_000, 100):
            requests = [
                asked(picture, 0.1, 4, 0.95, spectral=True, image_id=str(i), tenant=str(i % 1000))
                for i in range(start, start + 100)
            ]
            futures = [engine.submit(*request) for request in requests]
            for number, future in enumerate(futures):
                if number % 10 == 0:
                    future.cancel()
                else:
                    future.result(60)
            engine.smoother.batches.clear()  # type: ignore[attr-defined] # the test's own notes
            resident.append(_resident_bytes())
    finally:
        engine.close()
    print(f"resident after 1,000, 5,000 and 10,000 requests: {resident[9]:,}, {resident[49]:,}, {resident[-1]:,} bytes")
    assert resident[-1] - resident[29] < 8 * 2**20
    assert engine.cache_bytes <= 2**24


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
