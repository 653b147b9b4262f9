"""Field types and checks that several settings share: comma-separated lists, Redis URLs."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

T = TypeVar("T")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


# A list, or its parts separated by commas.
CommaList = Annotated[list[T], NoDecode, BeforeValidator(_split)]


def check_redis_url(name: str, url: str) -> None:
    """Checks a Redis URL without connecting.

    Args:
        name: Name of the setting, for the message.
        url: Its value, which may hold a password, so messages do not quote it.

    Raises:
        ValueError: It is not a Redis URL, or the extra ``redis`` is not installed.
    """
    if not url.startswith(("redis://", "rediss://")):
        raise ValueError(f"{name} must begin with redis:// or rediss://")
    try:
        from redis.connection import parse_url
    except ImportError:
        raise ValueError(f"{name} needs the extra 'redis': pip install 'fs-serve[redis]'") from None
    try:
        parse_url(url)  # type: ignore[no-untyped-call]
    except Exception:  # the library's message may hold the password
        raise ValueError(f"{name} is not a valid URL: redis://user:password@host:6379/0") from None
