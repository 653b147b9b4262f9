"""Rate limits of tenants, counted in Redis for several replicas, or else in this process."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, SlidingWindowCounterSupport, Storage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from server.access.tenants import Tenant
from server.errors import ApiError, invalid
from server.observability.metrics import Metrics
from server.rate_limits.redis import REDIS_SECONDS, redis_storage
from server.rate_limits.window import WINDOW_SECONDS, Window, rate_limit_headers

T = TypeVar("T")
Limit = Literal["requests", "images", "samples", "votes"]

log = structlog.get_logger("server.limits")

REDIS_RETRY_SECONDS = 5.0  # pause before an unreachable Redis is tried again
_REDIS_ERRORS = (StorageError, TimeoutError, OSError)
_REMEDY: dict[Limit, tuple[str, str]] = {
    "images": ("send fewer images in one request", "messages"),
    "samples": ("send fewer images, or ask for fewer samples", "robustness.samples"),
    "votes": ("let fewer copies vote on the answer", "robustness.answer.samples"),
}


@dataclass(frozen=True, slots=True)
class Charge:
    """What a request was charged, and which backend counted it."""

    backend: _Backend
    tenant: Tenant
    cost: dict[Limit, int]
    headers: dict[str, str]
    time: float


class RateLimiter:
    """The rate limits of all tenants.

    All keys of a tenant share its limits, so rotating keys does not change them. A request is charged before any work,
    for the most that it may cost, and atomically for each limit, so concurrent requests cannot exceed it together. A
    request that one limit refuses is charged for none.

    While Redis is unreachable, each process counts by itself. Requests are still answered, but with n replicas a tenant
    may get up to n times its limit.

    Args:
        redis_url: ``redis://…``; None for one process.
        metrics: Counts refusals, and failures of Redis.
    """

    def __init__(self, redis_url: str | None, metrics: Metrics) -> None:
        self._metrics = metrics
        self._local = _Backend(MemoryStorage())
        self._redis = _Backend(redis_storage(redis_url)) if redis_url else None
        self._redis_is_up = self._redis is not None
        self._try_redis_at = 0.0
        if self._redis_is_up:
            metrics.registry.register(metrics.limits_shared)
            metrics.limits_shared.set(1)

    async def charge(self, tenant: Tenant, cost: dict[Limit, int]) -> Charge:
        """Charges all of ``cost``, or nothing.

        Raises:
            ApiError: 429 with ``Retry-After`` if a limit is used up; 400 if the request alone exceeds a limit, so that
                waiting would not help.
        """
        bounds = _bounds(tenant)
        asked = {limit: cost[limit] for limit in bounds if cost.get(limit)}
        for limit, units in asked.items():
            if units > bounds[limit]:
                remedy, param = _REMEDY[limit]
                raise invalid(
                    f"the request needs {units} {limit}; this tenant's limit is {bounds[limit]} in a minute: {remedy}",
                    param,
                    "request_above_rate_limit",
                )
        if not bounds:
            return Charge(self._local, tenant, {}, {}, time.monotonic())

        async def take(backend: _Backend) -> tuple[Charge, Limit | None]:
            refused = await backend.take(tenant.name, asked, bounds)
            windows = {limit: await backend.window(tenant.name, limit, bound) for limit, bound in bounds.items()}
            headers = {
                name: value for limit in bounds for name, value in rate_limit_headers(limit, windows[limit]).items()
            }
            if refused is not None:
                wait = windows[refused].seconds_until(asked[refused])
                headers["retry-after"] = str(max(1, math.ceil(wait)))
            return Charge(backend, tenant, asked, headers, time.monotonic()), refused

        charge, refused = await self._on_backend(take)
        if refused is not None:
            self._metrics.rate_limited.labels(limit=refused).inc()
            raise ApiError(
                429,
                f"tenant {tenant.name} has used up its limit of {bounds[refused]} {refused} in a minute; try again in "
                f"{charge.headers['retry-after']} s",
                code="rate_limit_exceeded",
                headers=charge.headers,
            )
        return charge

    async def give_back(self, charge: Charge, units: dict[Limit, int]) -> None:
        """Gives back units that a finished request was charged but did not use.

        It gives nothing back after a whole window: by then the charge weighs less than the units would.
        """
        units = {limit: min(count, charge.cost[limit]) for limit, count in units.items() if charge.cost.get(limit)}
        if not any(units.values()) or time.monotonic() - charge.time > WINDOW_SECONDS:
            return
        bounds = _bounds(charge.tenant)
        try:
            async with asyncio.timeout(REDIS_SECONDS):
                for limit, count in units.items():
                    await charge.backend.add(charge.tenant.name, limit, bounds[limit], -count)
        except _REDIS_ERRORS:
            self._metrics.limits_errors.inc()  # Redis was lost in the meantime, and its counts with it

    async def close(self) -> None:
        """Closes the connections to Redis."""
        if self._redis is not None:
            await self._redis.close()

    async def _on_backend(self, work: Callable[[_Backend], Awaitable[T]]) -> T:
        if self._redis is not None and time.monotonic() >= self._try_redis_at:
            try:
                async with asyncio.timeout(REDIS_SECONDS):
                    done = await work(self._redis)
            except _REDIS_ERRORS as error:
                self._mark_redis_down(error)
            else:
                if not self._redis_is_up:
                    self._redis_is_up = True
                    self._metrics.limits_shared.set(1)
                    log.warning("Redis is back; rate limits are counted together again")
                return done
        return await work(self._local)

    def _mark_redis_down(self, error: Exception) -> None:
        self._metrics.limits_errors.inc()
        self._try_redis_at = time.monotonic() + REDIS_RETRY_SECONDS
        if self._redis_is_up:
            self._redis_is_up = False
            self._metrics.limits_shared.set(0)
            log.error("Redis cannot be reached; this process counts by itself", problem=type(error).__name__)


class _Backend:
    """Counts limits in one storage: memory or Redis."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def take(self, tenant: str, cost: dict[Limit, int], bounds: dict[Limit, int]) -> Limit | None:
        """Charges all of ``cost``, or nothing. Returns the limit that refused, or None."""
        taken: list[Limit] = []
        for limit, units in cost.items():
            if not await self.add(tenant, limit, bounds[limit], units):
                # Until this rollback is done, others may be wrongly refused, but never wrongly admitted.
                for other in taken:
                    await self.add(tenant, other, bounds[other], -cost[other])
                return limit
            taken.append(limit)
        return None

    async def add(self, tenant: str, limit: Limit, bound: int, units: int) -> bool:
        """Adds units to a count, unless they would exceed the bound. Negative ones are returned."""
        return await self._limiter.hit(_item(bound), tenant, limit, cost=units)

    async def window(self, tenant: str, limit: Limit, bound: int) -> Window:
        """The state of a count."""
        storage = cast(SlidingWindowCounterSupport, self._storage)
        previous, previous_seconds, current, current_seconds = await storage.get_sliding_window(
            _item(bound).key_for(tenant, limit), WINDOW_SECONDS
        )
        return Window(bound, previous, previous_seconds, current, current_seconds)

    async def close(self) -> None:
        """Closes the connections of a Redis storage."""
        connection = getattr(getattr(self._storage, "bridge", None), "storage", None)
        if connection is not None:
            await connection.aclose()


def _bounds(tenant: Tenant) -> dict[Limit, int]:
    settings = tenant.settings
    bounds: dict[Limit, int | None] = {
        "requests": settings.requests_per_minute,
        "images": settings.images_per_minute,
        "samples": settings.samples_per_minute,
        "votes": settings.votes_per_minute,
    }
    return {limit: bound for limit, bound in bounds.items() if bound is not None}


def _item(bound: int) -> RateLimitItemPerMinute:
    return RateLimitItemPerMinute(bound, namespace="fs-serve")
