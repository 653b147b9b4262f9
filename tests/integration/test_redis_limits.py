"""Rate limits that a real Redis counts for several replicas."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother
from server.access.tenants import Tenant
from server.errors import ApiError
from server.observability.metrics import Metrics
from server.rate_limits import limiter as module
from server.rate_limits import redis as storage
from server.rate_limits.limiter import RateLimiter
from server.settings.request import RequestSettings

from .gateway import data_url, picture, running_gateway
from .redis_process import RedisServer

Replicas = Callable[[Metrics], RateLimiter]


@pytest.fixture(scope="module")
def redis_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis(redis_of_module: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    monkeypatch.setattr(module, "REDIS_RETRY_SECONDS", 0.05)
    for user in (
        module,
        storage,
    ):  # a busy machine is not a Redis that has gone
        monkeypatch.setattr(user, "REDIS_SECONDS", 20.0)
    return redis_of_module


@pytest.fixture
async def replica(redis: RedisServer) -> AsyncIterator[Replicas]:
    made: list[RateLimiter] = []

    def make(metrics: Metrics) -> RateLimiter:
        made.append(RateLimiter(redis.url, metrics))
        return made[-1]

    yield make
    for limiter in made:
        await limiter.close()


def tenant(name: str, **limits: Any) -> Tenant:
    return Tenant(name, RequestSettings(**limits))


def value(metrics: Metrics, name: str) -> float:
    return metrics.registry.get_sample_value(name) or 0.0


async def test_replicas_count_together_and_nobody_gets_through_between(redis: RedisServer, replica: Replicas) -> None:
    replicas = [replica(Metrics()) for _ in range(3)]
    who = tenant("together", samples_per_minute=1000, images_per_minute=1000)
    charges = [replicas[number % 3].charge(who, {"images": 1, "samples": 100}) for number in range(60)]
    done = await asyncio.gather(*charges, return_exceptions=True)
    assert sum(not isinstance(item, BaseException) for item in done) == 10
    refused = [item for item in done if isinstance(item, ApiError)]
    assert {error.status for error in refused} == {429}
    assert all(1 <= int(error.headers["retry-after"]) <= 120 for error in refused)
    left = (await replicas[0].charge(who, {"requests": 1})).headers
    assert (left["x-ratelimit-remaining-images"], left["x-ratelimit-remaining-samples"]) == ("990", "0")


async def test_what_one_replica_gives_back_another_may_take(redis: RedisServer, replica: Replicas) -> None:
    one, two = replica(Metrics()), replica(Metrics())
    who = tenant("back", samples_per_minute=100)
    charge = await one.charge(who, {"samples": 100})
    with pytest.raises(ApiError):
        await two.charge(who, {"samples": 50})
    await one.give_back(charge, {"samples": 50})
    assert (await two.charge(who, {"samples": 50})).headers["x-ratelimit-remaining-samples"] == "0"


async def test_counts_do_not_depend_on_the_clocks_of_replicas(
    redis: RedisServer, replica: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = replica(Metrics())
    who = tenant("clocks", requests_per_minute=1)
    await limiter.charge(who, {"requests": 1})
    now = time.time()
    for jump in (-3600, 3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        with pytest.raises(ApiError):
            await limiter.charge(who, {"requests": 1})


async def test_when_redis_has_gone_each_replica_counts_for_itself_until_it_is_back(
    redis: RedisServer, replica: Replicas
) -> None:
    metrics = Metrics()
    limiter = replica(metrics)
    who = tenant("gone", requests_per_minute=2)
    await limiter.charge(who, {"requests": 1})
    assert value(metrics, "fs_rate_limits_shared") == 1

    redis.stop()
    with capture_logs() as logs:
        for _ in range(2):
            await limiter.charge(who, {"requests": 1})
        with pytest.raises(ApiError, match="2 requests"):  # there is a limit still
            await limiter.charge(who, {"requests": 1})
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert value(metrics, "fs_rate_limits_shared") == 0
    assert value(metrics, "fs_rate_limit_storage_errors_total") >= 1

    redis.start()
    await asyncio.sleep(0.1)  # longer than the time between two attempts
    with capture_logs() as logs:
        await limiter.charge(who, {"requests": 1})
    assert value(metrics, "fs_rate_limits_shared") == 1
    assert [entry["log_level"] for entry in logs] == ["warning"]


async def test_a_redis_that_hangs_costs_one_request_its_patience(
    redis: RedisServer, replica: Replicas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REDIS_RETRY_SECONDS", 60)
    for user in (module, storage):
        monkeypatch.setattr(user, "REDIS_SECONDS", 0.5)
    metrics = Metrics()
    limiter = replica(metrics)
    who = tenant("hangs", requests_per_minute=100)
    charge = await limiter.charge(who, {"requests": 1})
    redis.signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        for _ in range(20):
            await limiter.charge(who, {"requests": 1})
        await limiter.give_back(charge, {"requests": 1})
        assert time.monotonic() - start < 3
    finally:
        redis.signal(signal.SIGCONT)
    assert value(metrics, "fs_rate_limits_shared") == 0


def test_a_gateway_goes_on_while_redis_comes_and_goes(redis: RedisServer, tiny_llava: Path) -> None:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    body = {"image": data_url(picture(1)), "robustness": {"samples": 8}}
    limits = {"requests_per_minute": 1000, "samples_per_minute": 100_000}
    with running_gateway(tiny_llava, engine, limits_redis_url=redis.url, **limits) as gateway:
        statuses = [gateway.post("/v1/certify", body).status_code]
        redis.stop()
        statuses += [gateway.post("/v1/certify", body).status_code for _ in range(5)]
        assert "fs_rate_limits_shared 0.0" in httpx.get(f"{gateway.url}/metrics").text
        redis.start()
        time.sleep(0.1)
        statuses += [gateway.post("/v1/certify", body).status_code for _ in range(2)]
        assert "fs_rate_limits_shared 1.0" in httpx.get(f"{gateway.url}/metrics").text
    engine.close()
    assert statuses == [200] * 8
