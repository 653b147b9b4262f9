"""The commands that the shared cache gives to Redis: one atomic step to look up or claim, one to store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

_PREFIX = "fs:image:"

# What is there; where nothing is, the claim is put there, so that of replicas that come at once one wins for all.
_FIND_OR_CLAIM = """
if redis.call('EXISTS', KEYS[1]) == 1 then return redis.call('HMGET', KEYS[1], 'claim', 'image') end
redis.call('HSET', KEYS[1], 'draws', ARGV[1], 'claim', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {}
"""

# Never in place of other draws, nor of more samples of the same ones.
_STORE = """
local held = redis.call('HMGET', KEYS[1], 'draws', 'count')
if held[1] and held[1] ~= ARGV[1] then return 'other' end
if held[2] and tonumber(held[2]) >= tonumber(ARGV[2]) then return 'kept' end
redis.call('HSET', KEYS[1], 'draws', ARGV[1], 'count', ARGV[2], 'image', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 'stored'
"""

StoreOutcome = Literal["stored", "kept", "other"]


class RefusedError(Exception):
    """Redis refuses a command: something else is under the name, there is no room, or this user may not."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What Redis holds under a name, sealed: the image, or as long as there is none the claim of its draws."""

    claim: bytes | None
    image: bytes | None


class RedisStore:
    """A client of Redis; its connections wait at most ``seconds`` for each answer.

    Every method raises RefusedError and what the client library raises: RedisError, OSError, and any other exception
    where the server does not speak Redis' protocol.

    Args:
        url: ``redis://…`` or ``rediss://…``.
        seconds: To connect, and for each answer.

    Raises:
        ImportError: The extra ``redis`` is not installed.
        ValueError: The URL cannot be read.
    """

    def __init__(self, url: str, seconds: float) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._client: Any = redis.Redis.from_url(
            url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 1),  # once more, for a kept connection that has been closed; no waiting
        )
        self._refusal = redis.ResponseError
        self._find_or_claim = self._client.register_script(_FIND_OR_CLAIM)
        self._store = self._client.register_script(_STORE)

    def find_or_claim(self, name: str, draws: str, claim: bytes, milliseconds: int) -> Entry | None:
        """What is under the name; None if nothing was, and now the claim is, for so long."""
        found = self._refusable(self._find_or_claim, [_PREFIX + name], [draws, claim, milliseconds])
        return Entry(*found) if found else None

    def store(self, name: str, draws: str, count: int, image: bytes, milliseconds: int) -> StoreOutcome:
        """Puts an image of ``count`` samples under the name, for so long."""
        arguments = [draws, count, image, milliseconds]
        outcome: StoreOutcome = self._refusable(self._store, [_PREFIX + name], arguments).decode()
        return outcome

    def wants(self, name: str, draws: str, count: int) -> bool:
        """Whether :meth:`store` would store that now."""
        held, there = self._refusable(self._client.hmget, _PREFIX + name, "draws", "count")
        return held in (None, draws.encode()) and int(there or 0) < count

    def drop(self, name: str) -> None:
        """Forgets what is under the name."""
        self._client.delete(_PREFIX + name)

    def disconnect(self) -> None:
        """Breaks off what is under way on other threads too."""
        self._client.connection_pool.disconnect()

    def _refusable(self, command: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return command(*arguments)
        except self._refusal as error:
            raise RefusedError(str(error)) from None
