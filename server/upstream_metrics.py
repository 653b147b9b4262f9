"""Metrics of the vLLM servers, by server: as many as the operator has configured."""

from __future__ import annotations

import time
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.language_models.places import Places
from server.language_models.pool import Pool, Server
from server.language_models.retries import Outcome, RetryBudget

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_BREAKER = {"closed": 0, "half_open": 1, "open": 2}


class UpstreamMetrics:
    """What the gateway sees of its vLLM servers; ``server`` is host and port."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "fs_upstream_requests",
            "Requests sent to a vLLM server, by outcome: answered, refused, unreachable, busy, failed, broken_off, "
            "timed_out, withdrawn.",
            ["server", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "fs_upstream_duration_seconds",
            "Time from sending a request to a vLLM server to the end of its answer, for those answered.",
            ["server"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.retries = Counter(
            "fs_upstream_retries",
            "Requests sent once more, by the outcome of the attempt before.",
            ["reason"],
            registry=registry,
        )
        self.sheds = Counter(
            "fs_upstream_sheds",
            "Requests turned away for want of a free vLLM server: queue_full, no_place (in time).",
            ["reason"],
            registry=registry,
        )
        self._in_flight = Gauge("fs_upstream_in_flight", "Requests at a vLLM server.", ["server"], registry=registry)
        self._healthy = Gauge("fs_upstream_healthy", "Whether a vLLM server is healthy.", ["server"], registry=registry)
        self._breaker = Gauge(
            "fs_upstream_breaker_state",
            "Circuit breaker of a vLLM server: 0 closed, 1 half open, 2 open.",
            ["server"],
            registry=registry,
        )
        self._waiting = Gauge("fs_upstream_waiting", "Requests that wait for a vLLM server.", registry=registry)
        self._budget = Gauge("fs_upstream_retry_budget", "Retries at hand.", registry=registry)

    def watch(self, pool: Pool, places: Places, budget: RetryBudget) -> None:
        """Reads the gauges off the pool whenever they are scraped."""
        for server in pool.servers:
            self._in_flight.labels(server=server.name).set_function(partial(getattr, server, "in_flight"))
            self._healthy.labels(server=server.name).set_function(partial(getattr, server, "healthy"))
            self._breaker.labels(server=server.name).set_function(partial(_breaker_state, server))
        self._waiting.set_function(lambda: places.waiting)
        self._budget.set_function(lambda: budget.balance)

    def observe(self, server: Server, outcome: Outcome, seconds: float) -> None:
        """Counts one request at one server."""
        self.requests.labels(server=server.name, outcome=outcome).inc()
        if outcome is Outcome.ANSWERED:
            self.seconds.labels(server=server.name).observe(seconds)


def _breaker_state(server: Server) -> float:
    return _BREAKER[server.breaker.state(time.monotonic())]
