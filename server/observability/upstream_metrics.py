"""Metrics of the vLLM servers, by model and server: as many as the operator has configured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from server.observability.metric_rows import Scraped
from server.observability.metric_table import MetricTable

_BREAKER = {"closed": 0, "half_open": 1, "open": 2}


@dataclass(frozen=True, slots=True)
class ServerReading:
    """One vLLM server at the time of a scrape.

    Attributes:
        name: Host and port.
        in_flight: Requests that it has.
        healthy: Whether it is.
        breaker: State of its circuit breaker: ``closed``, ``half_open`` or ``open``.
    """

    name: str
    in_flight: int
    healthy: bool
    breaker: str


@dataclass(frozen=True, slots=True)
class PoolReading:
    """The vLLM servers of a model at the time of a scrape.

    Attributes:
        servers: One by one.
        waiting: Requests that wait for one of them.
        retries_at_hand: What the retry budget has left.
    """

    servers: tuple[ServerReading, ...]
    waiting: int
    retries_at_hand: float


_SERVER: dict[Scraped, Callable[[ServerReading], float]] = {
    MetricTable.upstream_in_flight: lambda server: server.in_flight,
    MetricTable.upstream_healthy: lambda server: server.healthy,
    MetricTable.upstream_breaker_state: lambda server: _BREAKER[server.breaker],
}
_POOL: dict[Scraped, Callable[[PoolReading], float]] = {
    MetricTable.upstream_waiting: lambda pool: pool.waiting,
    MetricTable.upstream_retry_budget: lambda pool: pool.retries_at_hand,
}


class UpstreamMetrics(Collector):
    """What the gateway sees of its vLLM servers; ``server`` is host and port."""

    def __init__(self, table: MetricTable) -> None:
        self._table = table
        self._watched: dict[str, Callable[[], PoolReading]] = {}
        table.registry.register(self)

    def watch(self, model: str, read: Callable[[], PoolReading]) -> None:
        """Asks ``read`` for the gauges of a model from now on, at each scrape."""
        self._watched[model] = read

    def retire(self, model: str, servers: Collection[str]) -> None:
        """Takes the series of servers away, but for those that the model's present pool has too."""
        read = self._watched.get(model)
        kept = {server.name for server in read().servers} if read else set()
        for server in set(servers) - kept:
            self._table.remove(model=model, server=server)

    def forget(self, model: str) -> None:
        """Asks for the gauges of a model no more."""
        self._watched.pop(model, None)

    def collect(self) -> Iterator[Metric]:
        """The gauges, as they are now."""
        pools = {model: read() for model, read in list(self._watched.items())}
        servers = [((model, server.name), server) for model, pool in pools.items() for server in pool.servers]
        for row, of_server in _SERVER.items():
            yield row.family((labels, of_server(server)) for labels, server in servers)
        for row, of_pool in _POOL.items():
            yield row.family(((model,), of_pool(pool)) for model, pool in pools.items())


class ModelUpstreamMetrics:
    """What is counted of the servers of one model."""

    def __init__(self, table: MetricTable, metrics: UpstreamMetrics, model: str) -> None:
        self._table = table
        self._metrics = metrics
        self._model = model

    def watch(self, read: Callable[[], PoolReading]) -> None:
        """Asks ``read`` for the gauges from now on, at each scrape."""
        self._metrics.watch(self._model, read)

    def retire(self, servers: Collection[str]) -> None:
        """A pool is closed: takes the series of servers away that the model does not have any more."""
        self._metrics.retire(self._model, servers)

    def count_retry(self, reason: str) -> None:
        """Counts a request sent once more, by the outcome before."""
        self._table.upstream_retries.labels(model=self._model, reason=reason).inc()

    def count_shed(self, reason: str) -> None:
        """Counts a request turned away."""
        self._table.upstream_sheds.labels(model=self._model, reason=reason).inc()

    def observe(self, server: str, outcome: str, seconds: float) -> None:
        """Counts one request at one server."""
        self._table.upstream_requests.labels(model=self._model, server=server, outcome=outcome).inc()
        if outcome == "answered":
            self._table.upstream_seconds.labels(model=self._model, server=server).observe(seconds)
