"""Addresses of Redis in the settings."""

from __future__ import annotations


def check_redis_url(name: str, url: str) -> None:
    """Refuses what no client of Redis can be made from. Does not connect.

    Args:
        name: Of the setting, for the message.
        url: Its value, which may hold a password and is not repeated.

    Raises:
        ValueError: It is no such URL, or the extra ``redis`` is not installed.
    """
    if not url.startswith(("redis://", "rediss://")):
        raise ValueError(f"{name} must begin with redis:// or rediss://")
    try:
        from redis.connection import parse_url
    except ImportError:
        raise ValueError(f"{name} needs the extra 'redis': pip install 'fs-serve[redis]'") from None
    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except Exception:  # whatever the client library raises; its words may hold the password
        raise ValueError(f"{name} is not a valid URL: redis://user:password@host:6379/0") from None
