"""Stored images through bytes: answers and further samples are those of the original, to the last bit."""

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from fs_runtime.engine import SmoothingEngine
from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.stored import StoredImage
from fs_runtime.engine.cache.stored_format import (
    UnreadableError,
    image_from_bytes,
    image_to_bytes,
    origin_from_bytes,
    origin_to_bytes,
)
from fs_runtime.engine.request import Origin
from fs_runtime.smoothing.feature_map import FeatureMap
from tests.asked import Asked
from tests.unit.fs_runtime.engine.conftest import Ask, WatchedSmoother

KINDS: list[dict[str, object]] = [
    {},
    {"spectral": True},
    {"granularity": "token"},
    {"token_map": True, "spectral": True},
    {"feature_map": FeatureMap("projector")},
    {"sigma": 0.0},
]


def stored_in(engine: SmoothingEngine, request: Asked) -> StoredImage:
    engine.submit(*request).result(30)
    found = engine._cache.get(CacheKey.of(request[0], engine.smoother, pixels=request[1]))
    assert found is not None
    return found


@pytest.fixture
def other(smoother: WatchedSmoother) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(WatchedSmoother(smoother.encoder), batch_size=8, cache_bytes=2**26)
    yield engine
    engine.close()


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("samples", [1, 40])
def test_goes_on_as_the_original_does(
    cached: SmoothingEngine, other: SmoothingEngine, ask: Ask, options: dict[str, object], samples: int
) -> None:
    request = ask(samples=samples, **options)
    original = stored_in(cached, request)
    copy = image_from_bytes(image_to_bytes(original))
    assert copy.origin == original.origin
    assert abs(copy.nbytes - original.nbytes) < 1000
    assert not copy.is_better_than(original)
    other._cache.put(CacheKey.of(request[0], other.smoother, pixels=request[1]), copy)
    for further in (samples, samples + 30):
        one, two = (engine.submit(*ask(samples=further, **options)).result(30) for engine in (cached, other))
        assert one.cache == two.cache == ("hit" if further == samples else "extended")
        values = dataclasses.asdict(two)
        for name, value in dataclasses.asdict(one).items():
            if not name.endswith("seconds"):
                np.testing.assert_equal(value, values[name], name)


def test_without_the_sums_it_still_answers(cached: SmoothingEngine, ask: Ask) -> None:
    original = dataclasses.replace(stored_in(cached, ask()), sums=None)
    copy = image_from_bytes(image_to_bytes(original))
    assert copy.sums is None
    assert copy.draws.count == 20


def test_every_cut_and_many_changes_are_refused_or_read(cached: SmoothingEngine, ask: Ask) -> None:
    """Nothing but UnreadableError may come out: what is read was authenticated before, but another version wrote it."""
    data = image_to_bytes(stored_in(cached, ask(spectral=True, token_map=True)))
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(data), 50):
        with pytest.raises(UnreadableError):
            image_from_bytes(data[:cut])
    header = 8 + int.from_bytes(data[:8], "little")
    numbers = data.index(b'{"origin"')
    for place in (*rng.integers(0, header, 300), *rng.integers(numbers, numbers + 400, 100)):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(0, 7))
        with contextlib.suppress(UnreadableError):
            image_from_bytes(bytes(changed))


def test_origins() -> None:
    origin = Origin.fresh(17)
    assert origin_from_bytes(origin_to_bytes(origin)) == origin
    assert Origin.fresh(1, seed=5).seed == 5
    for data in (b"", b"[]", b"{}", b'{"seed": 1, "planned": null, "begun": 0}', b"\xff"):
        with pytest.raises(UnreadableError):
            origin_from_bytes(data)
