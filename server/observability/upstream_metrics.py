"""Metrics of the vLLM servers, by model and server: as many as the operator has configured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
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


class UpstreamMetrics(Collector):
    """What the gateway sees of its vLLM servers; ``server`` is host and port."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._watched: dict[str, Callable[[], PoolReading]] = {}
        self.requests = Counter(
            "fs_upstream_requests",
            "Requests sent to a vLLM server, by outcome: answered, refused, unreachable, busy, failed, broken_off, "
            "timed_out, withdrawn.",
            ["model", "server", "outcome"],
            registry=registry,
        )
        self.seconds = Histogram(
            "fs_upstream_duration_seconds",
            "Time from sending a request to a vLLM server to the end of its answer, for those answered.",
            ["model", "server"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.retries = Counter(
            "fs_upstream_retries",
            "Requests sent once more, by the outcome of the attempt before.",
            ["model", "reason"],
            registry=registry,
        )
        self.sheds = Counter(
            "fs_upstream_sheds",
            "Requests turned away for want of a free vLLM server: queue_full, no_place (in time).",
            ["model", "reason"],
            registry=registry,
        )
        registry.register(self)

    def of_model(self, model: str) -> ModelUpstreamMetrics:
        """Those of one model's servers."""
        return ModelUpstreamMetrics(self, model)

    def watch(self, model: str, read: Callable[[], PoolReading]) -> None:
        """Asks ``read`` for the gauges of a model from now on, at each scrape."""
        self._watched[model] = read

    def retire(self, model: str, servers: Collection[str]) -> None:
        """Takes the series of servers away, but for those that the model's present pool has too."""
        read = self._watched.get(model)
        kept = {server.name for server in read().servers} if read else set()
        for server in set(servers) - kept:
            for metric in (self.requests, self.seconds):
                metric.remove_by_labels({"model": model, "server": server})

    def forget(self, model: str) -> None:
        """Takes all series of a model away."""
        self._watched.pop(model, None)
        for metric in (self.requests, self.seconds, self.retries, self.sheds):
            metric.remove_by_labels({"model": model})

    def collect(self) -> Iterator[Metric]:
        """The gauges, as they are now."""
        of_server = ["model", "server"]
        in_flight = GaugeMetricFamily("fs_upstream_in_flight", "Requests at a vLLM server.", labels=of_server)
        healthy = GaugeMetricFamily("fs_upstream_healthy", "Whether a vLLM server is healthy.", labels=of_server)
        breaker = GaugeMetricFamily(
            "fs_upstream_breaker_state",
            "Circuit breaker of a vLLM server: 0 closed, 1 half open, 2 open.",
            labels=of_server,
        )
        waiting = GaugeMetricFamily("fs_upstream_waiting", "Requests that wait for a vLLM server.", labels=["model"])
        budget = GaugeMetricFamily("fs_upstream_retry_budget", "Retries at hand.", labels=["model"])
        for model, read in list(self._watched.items()):
            pool = read()
            for server in pool.servers:
                labels = [model, server.name]
                in_flight.add_metric(labels, server.in_flight)
                healthy.add_metric(labels, server.healthy)
                breaker.add_metric(labels, _BREAKER[server.breaker])
            waiting.add_metric([model], pool.waiting)
            budget.add_metric([model], pool.retries_at_hand)
        return iter((in_flight, healthy, breaker, waiting, budget))


class ModelUpstreamMetrics:
    """What is counted of the servers of one model."""

    def __init__(self, metrics: UpstreamMetrics, model: str) -> None:
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
        self._metrics.retries.labels(model=self._model, reason=reason).inc()

    def count_shed(self, reason: str) -> None:
        """Counts a request turned away."""
        self._metrics.sheds.labels(model=self._model, reason=reason).inc()

    def observe(self, server: str, outcome: str, seconds: float) -> None:
        """Counts one request at one server."""
        self._metrics.requests.labels(model=self._model, server=server, outcome=outcome).inc()
        if outcome == "answered":
            self._metrics.seconds.labels(model=self._model, server=server).observe(seconds)
