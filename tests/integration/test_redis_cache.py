"""Smoothed images that replicas share through a real Redis: one set of draws, and nothing that Redis does hurts."""

import dataclasses
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis as redis_client

from fs_runtime.encoders import VisionEncoder
from fs_runtime.engine import SmoothingEngine, SmoothingResult
from fs_runtime.engine.cache import shared as module
from fs_runtime.engine.cache.redis_store import Entry, RedisStore
from fs_runtime.engine.cache.shared import SharedCache, SharedCacheOptions
from fs_runtime.smoothing.smoother import Smoother
from server.models.loading import load_model
from server.settings.gateway import Settings
from tests.asked import Asked, asked

from .gateway import Gateway, data_url, picture, running_gateway
from .redis_process import RedisServer

SECRET = "a secret of all replicas, long enough"
Replica = Callable[..., SmoothingEngine]


@pytest.fixture(scope="module")
def redis_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis(redis_of_module: RedisServer) -> RedisServer:
    connect(redis_of_module).flushall()
    return redis_of_module


@pytest.fixture
def replica(redis: RedisServer, encoder: VisionEncoder) -> Iterator[Replica]:
    made: list[SmoothingEngine] = []

    def make(url: str = redis.url, secret: str = SECRET, **options: Any) -> SmoothingEngine:
        options = {"seconds": 20.0, **options}  # a busy machine is not a Redis that has gone
        cache_bytes = options.pop("cache_bytes", 2**26)
        shared = SharedCache(SharedCacheOptions(url, secret, **options))
        made.append(SmoothingEngine(Smoother(encoder), batch_size=8, cache_bytes=cache_bytes, shared_cache=shared))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def connect(server: RedisServer) -> Any:
    return redis_client.Redis.from_url(server.url)


def ask(number: int = 0, samples: int = 20, **options: Any) -> Asked:
    image = np.asarray(picture(number))
    return asked(image, samples=samples, **options)


def get(engine: SmoothingEngine, request: Asked) -> SmoothingResult:
    result = engine.submit(*request).result(60)
    assert engine.shared_cache is not None
    engine.shared_cache.settle(60)
    return result


def shared(engine: SmoothingEngine) -> SharedCache:
    assert engine.shared_cache is not None
    return engine.shared_cache


def same(one: SmoothingResult, other: SmoothingResult) -> None:
    """All that a certificate is made from."""
    values = dataclasses.asdict(other)
    for name, value in dataclasses.asdict(one).items():
        if name not in ("queue_seconds", "smoothing_seconds", "cache", "drawn"):
            np.testing.assert_equal(value, values[name], name)


# --- one set of draws -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"spectral": True}, {"token_map": True}, {"granularity": "token"}])
def test_what_one_replica_has_drawn_the_other_answers_from(replica: Replica, options: dict[str, Any]) -> None:
    one, two = replica(), replica()
    first = get(one, ask(**options))
    second = get(two, ask(**options))
    assert (first.cache, second.cache, two.samples_drawn) == ("miss", "hit", 0)
    same(first, second)
    assert get(two, ask(**options)).cache == "hit"
    assert shared(two).lookups == {"found": 1}  # from then on out of memory


def test_replicas_take_turns_with_one_confidence_sequence(replica: Replica, encoder: VisionEncoder) -> None:
    """Four replicas add to the draws in turn; the last answer is the one of a single engine with that seed."""
    results = [get(replica(), ask(samples=samples, spectral=True)) for samples in (11, 30, 50, 90)]
    assert [result.cache for result in results] == ["miss", "extended", "extended", "extended"]
    assert [result.drawn for result in results] == [11, 19, 20, 40]
    assert {result.planned for result in results} == {11}  # by which `served` shares out its α, at any of them
    assert len({result.seed for result in results}) == 1
    alone = SmoothingEngine(Smoother(encoder), batch_size=8)
    whole = alone.submit(*ask(samples=90, spectral=True, seed=results[0].seed)).result(60)
    alone.close()
    np.testing.assert_allclose(results[-1].norm_lower, whole.norm_lower, atol=1e-6)
    np.testing.assert_allclose(results[-1].payload["image_embeds"], whole.payload["image_embeds"], atol=1e-4)
    lowers = [float(result.norm_lower) for result in results]
    assert lowers == sorted(lowers)  # one sequence: its bound never falls


def test_a_replica_with_little_memory_goes_on_from_what_others_have(replica: Replica) -> None:
    """Its own cache keeps no image of this size, so it reads it once more when it goes on."""
    one = replica()
    first = get(one, ask(samples=40))
    two = replica(cache_bytes=8 * one.cache_bytes)
    more = get(two, ask(samples=48))
    assert (more.cache, more.drawn, more.seed) == ("extended", 8, first.seed)


def test_replicas_that_begin_at_once_draw_the_same_noise(replica: Replica) -> None:
    """Nobody waits for anybody; who loses the race draws what the winner does, so that both count as one attempt."""
    engines = [replica() for _ in range(4)]
    for number in range(5):
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda engine, number=number: get(engine, ask(number)), engines))
        assert len({(result.seed, result.planned) for result in results}) == 1
        for result in results[1:]:
            np.testing.assert_allclose(result.norm_lower, results[0].norm_lower, atol=1e-6)


def test_replicas_that_go_on_from_one_state_stay_one_set_of_draws(replica: Replica) -> None:
    """Both add to the same 16 samples; who adds fewer takes nothing away from what the other has stored."""
    one, two, three = replica(), replica(), replica()
    get(one, ask(samples=16))
    with ThreadPoolExecutor(2) as pool:
        more = pool.submit(get, one, ask(samples=40))
        most = pool.submit(get, two, ask(samples=60))
    assert more.result().seed == most.result().seed
    late = get(three, ask(samples=60))
    assert (late.cache, late.samples) == ("hit", 60)
    same(late, most.result())
    caught_up = get(one, ask(samples=60))
    assert (caught_up.cache, caught_up.drawn) == ("hit", 0)
    same(caught_up, late)


def test_an_image_too_large_to_go_on_with_is_drawn_again_from_its_seed(replica: Replica) -> None:
    one, two = (replica(max_image_bytes=60_000) for _ in range(2))
    first = get(one, ask(spectral=True))
    assert get(two, ask(spectral=True)).cache == "hit"
    more = get(two, ask(samples=40, spectral=True))
    assert (more.cache, more.drawn, more.seed, more.planned) == ("miss", 40, first.seed, 20)


def test_an_image_that_is_larger_still_is_not_written(replica: Replica) -> None:
    one, two = (replica(max_image_bytes=4096) for _ in range(2))
    first = get(one, ask())
    assert shared(one).writes == {"too_large": 1}
    second = get(two, ask())
    assert (second.cache, second.seed) == ("miss", first.seed)  # the claim is there all the same


# --- what is not shared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "other", [{"tenant": "b"}, {"spectral": True}, {"token_map": True}, {"image_id": "x"}, {"use_cache": False}]
)
def test_draws_of_something_else_are_not_shared(replica: Replica, other: dict[str, Any]) -> None:
    one, two = replica(), replica()
    first = get(one, ask(tenant="a"))
    found = get(two, ask(**{"tenant": "a", **other}))
    assert found.cache in ("miss", None)
    assert found.seed != first.seed


def test_a_replica_with_another_secret_sees_and_disturbs_nothing(replica: Replica) -> None:
    one, two = replica(), replica(secret="another secret, and just as long as it")
    first = get(one, ask())
    assert get(two, ask()).seed != first.seed
    assert get(replica(), ask()).seed == first.seed


def test_nothing_in_redis_tells_tenant_picture_or_seed(replica: Replica, redis: RedisServer) -> None:
    first = get(replica(), ask(tenant="a-tenant", image_id="a-picture"))
    client = connect(redis)
    dump = b"".join(key + b"".join(client.hgetall(key).values()) for key in client.scan_iter())
    for text in (b"a-tenant", b"a-picture", str(first.seed).encode(), b"image_embeds", b"numbers"):
        assert text not in dump
    assert first.payload["image_embeds"].tobytes()[:64] not in dump


# --- what others may do to Redis --------------------------------------------------------------------------------------


def the_key(redis: RedisServer) -> bytes:
    (key,) = connect(redis).keys()
    return key


def forge(redis: RedisServer, field: str, change: Callable[[bytes], bytes]) -> None:
    client, key = connect(redis), the_key(redis)
    client.hset(key, field, change(client.hget(key, field)))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:40] + bytes([value[40] ^ 1]) + value[41:],
        lambda value: value[:-1],
        lambda value: b"",
        lambda value: b"garbage" * 1000,
    ],
)
def test_a_changed_image_is_taken_away_and_made_anew(
    replica: Replica, redis: RedisServer, change: Callable[[bytes], bytes]
) -> None:
    first = get(replica(), ask())
    forge(redis, "image", change)
    two, three = replica(), replica()
    second = get(two, ask())
    assert (second.cache, shared(two).lookups) == ("miss", {"unusable": 1})
    assert second.seed != first.seed
    assert get(three, ask()).seed == second.seed  # Redis is mended


def test_an_image_moved_to_another_name_is_not_believed(replica: Replica, redis: RedisServer) -> None:
    one = replica()
    get(one, ask(1))
    weak = connect(redis).hgetall(the_key(redis))
    get(one, ask(2))
    (other,) = set(connect(redis).keys()) - {key for key in connect(redis).scan_iter() if _is(redis, key, weak)}
    connect(redis).hset(other, mapping=weak)
    two = replica()
    assert get(two, ask(2)).cache == "miss"
    assert shared(two).lookups == {"unusable": 1}


def _is(redis: RedisServer, key: bytes, value: dict[bytes, bytes]) -> bool:
    return bool(connect(redis).hgetall(key) == value)


@pytest.mark.parametrize("fill", ["set", "claim", "empty"])
def test_other_things_under_its_name_are_taken_away(replica: Replica, redis: RedisServer, fill: str) -> None:
    one = replica()
    get(one, ask())
    client, key = connect(redis), the_key(redis)
    client.delete(key)
    if fill == "set":
        client.set(key, "no hash")
    else:
        client.hset(key, *(("claim", "x") if fill == "claim" else ("draws", "x")))
    two, three = replica(), replica()
    second = get(two, ask())
    assert shared(two).lookups == {"unusable": 1}
    assert get(three, ask()).seed == second.seed


def test_what_is_put_back_after_its_lifetime_is_refused(
    replica: Replica, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = get(replica(lifetime=60), ask())
    client = connect(redis)
    assert 0 < client.pttl(the_key(redis)) <= 60_000
    kept = client.hgetall(the_key(redis))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    client.persist(the_key(redis))
    two = replica(lifetime=60)
    assert get(two, ask()).seed != first.seed
    assert shared(two).lookups == {"expired": 1}
    assert client.hgetall(the_key(redis)) != kept


def test_samples_added_later_do_not_prolong_the_lifetime(replica: Replica, redis: RedisServer) -> None:
    one = replica(lifetime=60)
    get(one, ask())
    connect(redis).pexpire(the_key(redis), 30_000)
    time.sleep(1.1)
    get(one, ask(samples=40))
    assert connect(redis).pttl(the_key(redis)) <= 59_000


def test_a_full_redis_costs_nothing_but_sharing(replica: Replica, redis: RedisServer) -> None:
    client = connect(redis)
    client.config_set("maxmemory", "1")
    try:
        one = replica()
        assert get(one, ask()).cache == "miss"
        assert shared(one).lookups == {"unusable": 1}
        assert shared(one).writes == {"refused": 1}
    finally:
        client.config_set("maxmemory", "0")
    assert get(one, ask(samples=30)).cache == "extended"
    assert get(replica(), ask(samples=30)).cache == "hit"


# --- a Redis that is away, slow or mad --------------------------------------------------------------------------------


def test_without_redis_each_replica_goes_on_and_shares_again_when_it_is_back(
    replica: Replica, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.2)
    one, two = replica(), replica()
    before = get(one, ask(1))
    redis.stop()
    try:
        alone = [get(engine, ask(2)) for engine in (one, two)]
        assert len({result.seed for result in alone}) == 2
        assert get(one, ask(1)).seed == before.seed
        assert not shared(one).up
        assert shared(one).lookups["failed"] + shared(one).lookups["skipped"] == 1
    finally:
        redis.start()
    time.sleep(0.3)
    first = get(one, ask(2, samples=40))  # nobody has claimed it: this replica's own draws become the shared ones
    assert (first.cache, first.seed) == ("extended", alone[0].seed)
    second = get(two, ask(2, samples=40))
    assert (second.cache, second.seed) == ("hit", alone[0].seed)
    assert shared(one).up
    assert shared(two).up


def test_a_redis_that_hangs_keeps_nobody_waiting(replica: Replica, redis: RedisServer) -> None:
    one = replica(seconds=0.3)
    get(one, ask(0))
    redis.signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        results = [one.submit(*ask(number)).result(60) for number in range(1, 10)]
        assert time.monotonic() - start < 0.3 * 2 + 9 * 1.0  # one wait, and the passes
        assert {result.cache for result in results} == {"miss"}
        assert shared(one).lookups["failed"] == 1
        assert shared(one).lookups["skipped"] == 8
    finally:
        redis.signal(signal.SIGCONT)


def test_draws_that_were_claimed_without_an_answer_are_the_ones_that_are_made(
    replica: Replica, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim arrives, its answer does not: what this replica draws then is what the others will go by."""
    one = replica(seconds=0.2)
    find = RedisStore.find_or_claim
    late = threading.Event()

    def slow(*arguments: Any) -> Entry | None:
        found = find(*arguments)
        late.wait(20)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(RedisStore, "find_or_claim", slow)
        first = one.submit(*ask()).result(60)
        late.set()
    assert shared(one).lookups == {"failed": 1}
    shared(one).settle(60)
    assert get(replica(), ask()).seed == first.seed


class MadServer:
    """Speaks anything but Redis' protocol, or speaks it one byte at a time for ever."""

    def __init__(self, answer: bytes, *, drip: bool = False) -> None:
        self._answer, self._drip = answer, drip
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._socket.getsockname()[1]}/0"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                connection.sendall(self._answer)
                while self._drip:
                    time.sleep(0.02)
                    connection.sendall(b"x")
                while connection.recv(65536):
                    connection.sendall(self._answer)
            except OSError:
                return

    def stop(self) -> None:
        self._socket.close()


@pytest.mark.parametrize(
    ("answer", "drip"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (b"\0" * 100, False),
        (b"$-7\r\n*-3\r\n", False),
        (b"+OK\r\n" * 20, False),
        (b"*2\r\n$3\r\nabc\r\n$3\r\ndef\r\n" * 4, False),
        (b":1\r\n" * 20, False),
        (b"$1000000000\r\n", True),
        (b"", True),
    ],
)
def test_whatever_answers_in_place_of_redis_fails_no_request_and_delays_none(
    replica: Replica, answer: bytes, drip: bool
) -> None:
    server = MadServer(answer, drip=drip)
    try:
        one = replica(server.url, seconds=0.3)
        start = time.monotonic()
        assert one.submit(*ask()).result(60).cache == "miss"
        assert one.submit(*ask()).result(60).cache == "hit"
        assert time.monotonic() - start < 4
        assert sum(shared(one).lookups.values()) == 1
        assert not shared(one).lookups["found"]
    finally:
        server.stop()


def test_closing_does_not_wait_for_a_redis_that_does_not_answer(replica: Replica) -> None:
    server = MadServer(b"", drip=True)
    one = replica(server.url, seconds=0.2)
    one.submit(*ask()).result(60)
    start = time.monotonic()
    one.close()
    assert time.monotonic() - start < 4
    server.stop()


def test_the_settings_make_engines_that_share(redis: RedisServer, tiny_llava: Path) -> None:
    settings = Settings(
        model=str(tiny_llava),
        cache_redis_url=redis.url,
        cache_redis_key=SECRET,
        cache_redis_timeout=10,
        cache_redis_lifetime=60,
    )
    outcomes = []
    for _ in range(2):
        loaded = load_model(settings)
        outcomes.append(get(loaded.engine, ask()).cache)
        loaded.close()
    assert outcomes == ["miss", "hit"]
    assert 0 < connect(redis).pttl(the_key(redis)) <= 60_000
    assert SECRET not in repr(settings)


# --- gateways ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def gateways(replica: Replica, tiny_llava: Path) -> Iterator[tuple[Gateway, Gateway]]:
    with (
        running_gateway(tiny_llava, replica()) as one,
        running_gateway(tiny_llava, replica()) as two,
    ):
        yield one, two


def certify(gateway: Gateway, number: int, **options: Any) -> dict[str, Any]:
    answer = gateway.post("/v1/certify", {"image": data_url(picture(number)), "robustness": options})
    assert answer.status_code == 200, answer.text
    shared(gateway.engine).settle(60)
    entry: dict[str, Any] = answer.json()["robustness"]["images"][0]
    return entry


def test_two_gateways_share_certificates_and_receipts(
    gateways: tuple[Gateway, Gateway], tiny_llava: Path, encoder: VisionEncoder
) -> None:
    from fs_runtime.receipts import Receipt
    from fs_runtime.receipts.verify import verify

    one, two = gateways
    first, second = certify(one, 1, samples=16), certify(two, 1, samples=16)
    assert (first["cache"], second["cache"]) == ("miss", "hit")
    assert {name: first[name] for name in ("norm", "smoothed", "served", "spread")} == {
        name: second[name] for name in ("norm", "smoothed", "served", "spread")
    }
    assert two.engine.samples_drawn == 0
    entry = certify(two, 1, samples=40, receipt=True)
    assert entry["cache"] == "extended"
    receipt = Receipt.model_validate(entry["receipt"])
    assert (receipt.draws.planned, receipt.draws.samples) == (16, 40)  # planned by the other gateway's request
    found = verify(receipt, np.asarray(picture(1)), lambda: Smoother(encoder))
    assert found.verdict == "reproduced", found.problems
    assert certify(one, 1, samples=40)["cache"] == "hit"


def test_metrics_say_what_the_shared_cache_did(gateways: tuple[Gateway, Gateway]) -> None:
    one, two = gateways
    certify(one, 2)
    certify(two, 2)
    text = httpx.get(f"{two.url}/metrics").text
    assert 'fs_shared_cache_up{model="tiny-llava"} 1.0' in text
    assert 'fs_shared_cache_lookups_total{model="tiny-llava",outcome="found"} 1.0' in text
    text = httpx.get(f"{one.url}/metrics").text
    assert 'fs_shared_cache_writes_total{model="tiny-llava",outcome="stored"} 1.0' in text


def test_gateways_go_on_while_redis_comes_and_goes(gateways: tuple[Gateway, Gateway], redis: RedisServer) -> None:
    one, two = gateways
    certify(one, 3)
    redis.stop()
    try:
        assert certify(one, 3)["cache"] == "hit"
        assert certify(two, 3)["cache"] == "miss"
        assert 'fs_shared_cache_up{model="tiny-llava"} 0.0' in httpx.get(f"{two.url}/metrics").text
    finally:
        redis.start()
