"""Chooses the server for each request. It does no I/O and reads no clock: callers pass the time."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from server.language_models.vllm.breaker import CircuitBreaker


@dataclass(eq=False, slots=True)
class Server:
    """State of one server.

    Attributes:
        url: Its address, without a slash at the end.
        limit: Most concurrent requests that it gets.
        healthy: Whether its last health checks succeeded and it has been reachable since.
        compatibility_checked: Whether the compatibility check has run.
        fault: Why it is incompatible with the model although it is reachable; else None.
        in_flight: Requests that it is answering now.
        last_pick: Number of the pool's pick that last chose it, to break ties.
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
        """Host and port, for metrics and logs, where a password in the URL must not appear."""
        return self.url.partition("://")[2].rpartition("@")[2].partition("/")[0]

    def record_health(self, healthy: bool, misses_allowed: int = 0, fault: str | None = None) -> None:
        """Records a health check. One success makes the server healthy; more than ``misses_allowed`` consecutive
        failures make it unhealthy.
        """
        self.fault = fault
        self._misses = 0 if healthy else self._misses + 1
        if healthy:
            self.healthy = True
        elif self._misses > misses_allowed:
            self.healthy = False


class Pool:
    """Servers of the same model. Each request goes to the one with the fewest requests in flight.

    Unhealthy servers get no requests. A server with an open circuit breaker gets none while there is another one. A
    breaker never removes the last healthy server: else one client's failing requests could lock out all others.
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
        """Whether no server is healthy and at least one is incompatible with the model."""
        return not self.healthy and any(server.fault for server in self.servers)

    def candidates(self, now: float, avoid: Collection[Server] = (), exclude: Collection[Server] = ()) -> list[Server]:
        """Returns the healthy servers that a request may go to, full ones included.

        Servers that are neither in ``avoid`` nor have an open breaker come first. If there are none, it returns the
        next best group.
        """
        kinds: dict[tuple[bool, bool], list[Server]] = {}
        for server in self.servers:
            if server.healthy and server not in exclude:
                kinds.setdefault((server in avoid, not server.breaker.allows(now)), []).append(server)
        return kinds[min(kinds)] if kinds else []

    def pick(self, now: float, avoid: Collection[Server] = (), exclude: Collection[Server] = ()) -> Server | None:
        """Takes a slot at the least busy candidate; None if all are full. Return it with :meth:`release`."""
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
        """Returns a slot."""
        server.in_flight -= 1
