"""The Redis that counts rate limits, an optional extra."""

from __future__ import annotations

from typing import Any

from limits.aio.storage import RedisStorage, Storage

REDIS_SECONDS = 1.0  # a request waits this long at most for a Redis that has gone


def redis_storage(url: str) -> Storage:
    """Connects when it is first used.

    Raises:
        ImportError: The extra is not installed.
    """
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {
        "socket_timeout": REDIS_SECONDS,
        "socket_connect_timeout": REDIS_SECONDS,
        "retry": Retry(NoBackoff(), 1),  # once more, for a kept connection that has been closed; no waiting
    }
    return RedisStorage(f"async+{url}", implementation="redispy", wrap_exceptions=True, key_prefix="fs", **options)
