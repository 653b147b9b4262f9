"""The Redis that counts rate limits, an optional extra."""

from __future__ import annotations

from typing import Any

from limits.aio.storage import RedisStorage, Storage

REDIS_SECONDS = 1.0  # a request waits this long at most for a Redis that has gone


def check_redis_url(url: str) -> None:
    """Raises ValueError for a URL that is not Redis', and where the extra is not installed. Does not connect."""
    if not url.startswith(("redis://", "rediss://")):
        raise ValueError("limits_redis_url must begin with redis:// or rediss://")
    try:
        redis_storage(url)
    except ImportError:
        raise ValueError("limits_redis_url needs the extra 'redis': pip install 'fs-serve[redis]'") from None
    except Exception:  # whatever the client library raises; its words may hold the password
        raise ValueError("limits_redis_url is not a valid URL: redis://user:password@host:6379/0") from None


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
