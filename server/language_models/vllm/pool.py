"""Which server of the pool gets a request: no I/O, and no clock of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from server.language_models.vllm.breaker import CircuitBreaker


@dataclass(eq=False, slots=True)
class Server:
    """What the gateway knows of one server.

    Attributes:
        url: Its address, without a slash at the end.
        limit: Most requests that it gets at once.
        healthy: Whether it answered its last health checks, and could be reached since.
        compatibility_checked: Whether it has been asked if it fits the model.
        fault: Why it does not fit the model, though it can be reached; else None.
        in_flight: Requests that it has now.
        last_pick: When it was last_pick last, as the pool counts.
    """

    url: str
    limit: int
    breaker: CircuitBreaker = field(default_factory=CircuitBreaker)
    healthy: bool = True
    compatibility_checked: bool = False
    fault: str | None = None
    in_flight: int = 0
    last_pick: int = 0
    _misses: int = 0

    @property
    def name(self) -> str:
        """Host and port, for metrics and logs: an address may hold a password."""
        return self.url.partition("://")[2].rpartition("@")[2].partition("/")[0]

    def record_health(self, healthy: bool, misses_allowed: int = 0, fault: str | None = None) -> None:
        """Notes a health check: one success makes it healthy, more than ``misses_allowed`` misses in a row do not."""
        self.fault = fault
        self._misses = 0 if healthy else self._misses + 1
        if healthy:
            self.healthy = True
        elif self._misses > misses_allowed:
            self.healthy = False


class Pool:
    """Servers that serve the same model; each request goes to the one that has the fewest.

    Unhealthy servers get nothing. A server whose breaker is open gets nothing while there is another one: a breaker
    never takes away the last healthy server, so that no client can lock out all others by requests that fail.
    """

    def __init__(self, servers: Iterable[Server]) -> None:
        self.servers = tuple(servers)
        self._picks = 0

    @property
    def healthy(self) -> bool:
        """Whether any server is healthy."""
        return any(server.healthy for server in self.servers)

    @property
    def incompatible(self) -> bool:
        """Whether it is because they do not fit the model that no server is healthy."""
        return not self.healthy and any(server.fault for server in self.servers)

    def candidates(self, now: float, avoid: Collection[Server] = (), exclude: Collection[Server] = ()) -> list[Server]:
        """The healthy servers that a request may go to, be they full or not.

        Best are those that neither are to be avoided nor have an open breaker; else the next best kind is given.
        """
        kinds: dict[tuple[bool, bool], list[Server]] = {}
        for server in self.servers:
            if server.healthy and server not in exclude:
                kinds.setdefault((server in avoid, not server.breaker.allows(now)), []).append(server)
        return kinds[min(kinds)] if kinds else []

    def pick(self, now: float, avoid: Collection[Server] = (), exclude: Collection[Server] = ()) -> Server | None:
        """Takes a place at the best server that has one; None where all are full. Give it back with :meth:`release`."""
        free = [server for server in self.candidates(now, avoid, exclude) if server.in_flight < server.limit]
        if not free:
            return None
        server = min(free, key=lambda server: (server.in_flight, server.last_pick))
        self._picks += 1
        server.last_pick = self._picks
        server.in_flight += 1
        server.breaker.record_start(now)
        return server

    def release(self, server: Server) -> None:
        """Gives the place back."""
        server.in_flight -= 1
