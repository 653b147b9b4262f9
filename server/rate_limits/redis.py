"""Redis storage of rate limits, which needs the optional extra ``redis``."""

from __future__ import annotations

from typing import Any

from limits.aio.storage import RedisStorage, Storage

REDIS_SECONDS = 1.0  # the longest that a request waits for an unreachable Redis


def redis_storage(url: str) -> Storage:
    """Makes the storage, which connects when it is first used.

    Raises:
        ImportError: The extra is not installed.
    """
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {
        "socket_timeout": REDIS_SECONDS,
        "socket_connect_timeout": REDIS_SECONDS,
        "retry": Retry(NoBackoff(), 1),  # one immediate retry, in case a pooled connection had been closed
    }
    return RedisStorage(f"async+{url}", implementation="redispy", wrap_exceptions=True, key_prefix="fs", **options)
