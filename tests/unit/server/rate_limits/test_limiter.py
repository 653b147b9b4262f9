import asyncio
import time
from typing import Any

import pytest

from server.access.tenants import Tenant
from server.errors import ApiError
from server.observability.metrics import Metrics
from server.rate_limits import limiter as module
from server.rate_limits.limiter import RateLimiter
from server.settings.request import RequestSettings


def tenant(name: str = "acme", **limits: Any) -> Tenant:
    return Tenant(name, RequestSettings(**limits))


async def refusal(limiter: RateLimiter, who: Tenant, **cost: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await limiter.charge(who, cost)  # type: ignore[arg-type]
    return caught.value


def limited(metrics: Metrics, limit: str) -> float | None:
    return metrics.registry.get_sample_value("fs_rate_limited_total", {"limit": limit})


@pytest.fixture(autouse=True)
def _not_at_the_turn_of_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts weigh less from one minute to the next; a clock that begins at a full minute keeps tests exact."""
    now, start = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: start // 60 * 60 + now() - start)


async def test_without_limits_nothing_is_counted_and_no_header_sent() -> None:
    charge = await RateLimiter(None, Metrics()).charge(tenant(), {"requests": 1})
    assert charge.headers == {}


async def test_the_limit_is_reached_and_says_which_and_when() -> None:
    metrics = Metrics()
    limiter = RateLimiter(None, metrics)
    who = tenant(requests_per_minute=3)
    remaining = [
        (await limiter.charge(who, {"requests": 1})).headers["x-ratelimit-remaining-requests"] for _ in range(3)
    ]
    assert remaining == ["2", "1", "0"]
    error = await refusal(limiter, who, requests=1)
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert "3 requests in a minute" in error.message
    assert 1 <= int(error.headers["retry-after"]) <= 120
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert limited(metrics, "requests") == 1


def test_whether_limits_are_shared_is_said_only_where_a_redis_is_set() -> None:
    alone, shared = Metrics(), Metrics()
    RateLimiter(None, alone)
    RateLimiter("redis://127.0.0.1:1", shared)
    assert alone.registry.get_sample_value("fs_rate_limits_shared") is None
    assert shared.registry.get_sample_value("fs_rate_limits_shared") == 1


async def test_tenants_do_not_share_limits() -> None:
    limiter = RateLimiter(None, Metrics())
    await limiter.charge(tenant("a", requests_per_minute=1), {"requests": 1})
    await limiter.charge(tenant("b", requests_per_minute=1), {"requests": 1})
    await refusal(limiter, tenant("a", requests_per_minute=1), requests=1)


async def test_what_one_limit_refuses_is_charged_to_none() -> None:
    metrics = Metrics()
    limiter = RateLimiter(None, metrics)
    who = tenant(images_per_minute=10, samples_per_minute=100)
    await limiter.charge(who, {"images": 1, "samples": 90})
    error = await refusal(limiter, who, images=2, samples=20)
    assert error.headers["x-ratelimit-remaining-images"] == "9"
    assert error.headers["x-ratelimit-remaining-samples"] == "10"
    assert (limited(metrics, "images"), limited(metrics, "samples")) == (0, 1)


async def test_what_no_waiting_would_help_is_a_400() -> None:
    error = await refusal(RateLimiter(None, Metrics()), tenant(samples_per_minute=100), images=1, samples=101)
    assert (error.status, error.code, error.param) == (400, "request_above_rate_limit", "robustness.samples")


async def test_votes_have_a_limit_of_their_own() -> None:
    limiter, who = RateLimiter(None, Metrics()), tenant(votes_per_minute=100)
    error = await refusal(limiter, who, images=1, samples=101, votes=101)
    assert (error.status, error.code, error.param) == (400, "request_above_rate_limit", "robustness.answer.samples")
    assert "let fewer copies vote" in error.message
    charge = await limiter.charge(who, {"images": 3, "samples": 300, "votes": 100})
    assert charge.headers["x-ratelimit-remaining-votes"] == "0"
    await refusal(limiter, who, votes=1)
    without = await limiter.charge(who, {"images": 1, "samples": 256, "votes": 0})
    await limiter.give_back(without, {"samples": 10, "votes": 5})  # neither was charged
    await limiter.give_back(charge, {"samples": 10, "votes": 60})
    assert (await limiter.charge(who, {"votes": 60})).headers["x-ratelimit-remaining-votes"] == "0"


async def test_requests_that_come_together_do_not_pass_together() -> None:
    limiter = RateLimiter(None, Metrics())
    who = tenant(samples_per_minute=1000)
    done = await asyncio.gather(*(limiter.charge(who, {"samples": 100}) for _ in range(50)), return_exceptions=True)
    assert sum(not isinstance(item, ApiError) for item in done) == 10


async def test_what_was_not_needed_is_given_back_once_and_no_more_than_was_charged() -> None:
    limiter = RateLimiter(None, Metrics())
    who = tenant(samples_per_minute=100)
    charge = await limiter.charge(who, {"samples": 100})
    await limiter.give_back(charge, {"samples": 60})
    after = await limiter.charge(who, {"samples": 60})
    assert after.headers["x-ratelimit-remaining-samples"] == "0"
    await limiter.give_back(after, {"samples": 1000})
    assert (await limiter.charge(who, {"samples": 60})).headers["x-ratelimit-remaining-samples"] == "0"


async def test_nothing_is_given_back_after_a_whole_window(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = RateLimiter(None, Metrics())
    who = tenant(samples_per_minute=100)
    charge = await limiter.charge(who, {"samples": 100})
    now = time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 61)
    await limiter.give_back(charge, {"samples": 100})
    await refusal(limiter, who, samples=1)


async def test_a_clock_that_jumps_locks_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = RateLimiter(None, Metrics())
    who = tenant(requests_per_minute=1)
    now = time.time()
    for jump in (0, -86_400, 86_400, -3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        await limiter.charge(who, {"requests": 1})
        await refusal(limiter, who, requests=1)


async def test_in_the_long_run_a_tenant_gets_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = RateLimiter(None, Metrics())
    who = tenant(requests_per_minute=60)
    now = time.time()
    passed: list[float] = []
    for step in range(6000):  # ten minutes, ten requests a second
        at = now + step / 10
        monkeypatch.setattr(time, "time", lambda at=at: at)
        try:
            await limiter.charge(who, {"requests": 1})
        except ApiError:
            continue
        passed.append(at)
    assert 9 * 60 <= len(passed) <= 11 * 60
    worst = max(sum(at <= other < at + 60 for other in passed) for at in passed)
    assert worst <= 2 * 60
