"""What a row in the table of metrics says, and what is made from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast, overload

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

_Kind = TypeVar("_Kind", Counter, Gauge, Histogram, Info)
_Family = CounterMetricFamily | GaugeMetricFamily | InfoMetricFamily
_FAMILIES: dict[type, type[_Family]] = {
    Counter: CounterMetricFamily,
    Gauge: GaugeMetricFamily,
    Info: InfoMetricFamily,
}

OPEN: tuple[str, ...] = ()
"""For a label whose values are not known beforehand."""


@dataclass(frozen=True, eq=False)
class Scraped:
    """A metric that is read at each scrape.

    Attributes:
        kind: What it is.
        name: Without the ending that its kind adds, such as ``_total``.
        help: What operators read about it.
        labels: Names of its labels.
    """

    kind: type[Counter | Gauge | Info]
    name: str
    help: str
    labels: Sequence[str]

    def family(self, figures: Iterable[tuple[Sequence[str], float | dict[str, str] | None]]) -> Metric:
        """The metric as it is now; ``figures`` are label values and value of each series, None where there is none."""
        family = _FAMILIES[self.kind](self.name, self.help, labels=self.labels)
        for labels, figure in figures:
            if figure is not None:
                family.add_metric(labels, cast(Any, figure))  # a dictionary for Info, else a number
        return family


@dataclass(frozen=True, eq=False)
class Counted(Generic[_Kind]):
    """A metric that is counted, set or observed where things happen.

    The attribute of a table's class is the row, that of an instance the metric.

    Attributes:
        kind: What it is.
        name: Without the ending that its kind adds, such as ``_total``.
        help: What operators read about it.
        labels: Its labels, each with the values that are known beforehand. Series of all their combinations begin at
            zero: an alert cannot watch what appears with the first fault.
        also: Label values of further series that begin at zero.
        buckets: Upper bounds of a histogram's buckets.
        registered: Whether it is exported from the beginning. If not, whoever sets it registers it.
    """

    kind: type[_Kind]
    name: str
    help: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    also: Sequence[tuple[str, ...]] = ()
    buckets: Sequence[float] = ()
    registered: bool = True

    @overload
    def __get__(self, table: None, owner: type[Table]) -> Counted[_Kind]: ...
    @overload
    def __get__(self, table: Table, owner: type[Table]) -> _Kind: ...
    def __get__(self, table: Table | None, owner: type[Table]) -> Any:
        return self if table is None else table.metrics[self]

    def metric(self, registry: CollectorRegistry) -> _Kind:
        """A new metric, with the series that are known beforehand."""
        options: dict[str, Any] = {"buckets": self.buckets} if self.buckets else {}
        options["registry"] = registry if self.registered else None
        metric = self.kind(self.name, self.help, tuple(self.labels), **options)
        self.start(metric)
        return metric

    def start(self, metric: _Kind, **known: Sequence[str]) -> None:
        """Creates series whose label values are known now; ``known`` has those that only a running gateway knows."""
        if self.labels:
            values: list[Sequence[str]] = [known.get(label, beforehand) for label, beforehand in self.labels.items()]
            for series in (*self.also, *itertools.product(*values)):
                metric.labels(*series)


class Table:
    """Metrics made from the rows that are the attributes of a subclass.

    Args:
        registry: What exports them, in the order of the rows.

    Attributes:
        metrics: Those that are counted, by row.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.metrics = {row: row.metric(registry) for row in self.rows() if isinstance(row, Counted)}

    @classmethod
    def rows(cls) -> list[Counted[Any] | Scraped]:
        """All rows, in their order."""
        attributes = itertools.chain.from_iterable(vars(each).values() for each in reversed(cls.__mro__))
        return [row for row in attributes if isinstance(row, Counted | Scraped)]

    def start_model(self, model: str, routes: Sequence[str]) -> None:
        """Creates the series of a model whose labels are known; ``routes`` are those whose requests name a model."""
        for row, metric in self.metrics.items():
            if "model" in row.labels:
                row.start(metric, model=(model,), route=routes)

    def remove(self, **labels: str) -> None:
        """Takes all series with these label values away, of every metric that is counted and has all these labels."""
        for row, metric in self.metrics.items():
            if row.labels.keys() >= labels.keys():
                metric.remove_by_labels(labels)
