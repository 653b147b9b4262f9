"""From settings to the cache that replicas share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fs_runtime.engine.seal import Seal
from fs_runtime.engine.shared_cache import SharedCache, SharedCacheOptions

if TYPE_CHECKING:
    from server.settings import Settings


def build_shared_cache(settings: Settings) -> SharedCache | None:
    """The cache that the settings name; None if they name none. Connects when it is first used."""
    if settings.cache_redis_url is None or settings.cache_redis_key is None:
        return None
    return SharedCache(
        SharedCacheOptions(
            settings.cache_redis_url.get_secret_value(),
            settings.cache_redis_key.get_secret_value(),
            settings.cache_redis_timeout,
            settings.cache_redis_lifetime,
            settings.cache_redis_image_bytes,
        )
    )


def check_shared_cache(settings: Settings) -> None:
    """Refuses settings of the shared cache that do not go together. Does not connect.

    Raises:
        ValueError: With the name of the setting and the remedy.
    """
    url, key = settings.cache_redis_url, settings.cache_redis_key
    if (url is None) != (key is None):
        raise ValueError(
            "cache_redis_url and cache_redis_key go together: without the key whoever can write that Redis could "
            "forge certificates; make one with `openssl rand -hex 32` and give it to all replicas"
        )
    if key is None:
        return
    if not settings.cache_bytes:
        raise ValueError("cache_redis_url needs a cache in memory in front of it; give cache_bytes more than 0")
    try:
        Seal(key.get_secret_value())
    except ValueError as error:
        raise ValueError(f"cache_redis_key: {error}") from None
