"""Prometheus metrics: base units, bounded labels."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, ProcessCollector

from fs_runtime import __version__
from server.errors import ApiError
from server.observability.metric_table import MetricTable
from server.observability.model_metrics import ModelFamilies


class Metrics(MetricTable):
    """All metrics of one gateway, in a registry of their own.

    Args:
        model_routes: Paths of the routes whose requests name a model; each model's series of them begin at zero.
    """

    def __init__(self, model_routes: Sequence[str] = ()) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        super().__init__(registry)
        self.models = ModelFamilies(self, model_routes)
        self.build.info({"version": __version__})
        self.registry.register(self.build)

    def observe_stage(self, name: str, seconds: float) -> None:
        """Notes how long a stage took that is the same for all models."""
        self.stage_seconds.labels(stage=name, model="").observe(seconds)

    def count_error(self, error: ApiError) -> None:
        """Counts one error answer. Codes are words of the source, never of a request."""
        self.errors.labels(code=error.code, fault="server" if error.status >= 500 else "client").inc()
        if error.status == 429 or error.code == "shutting_down":
            self.shed.labels(reason=error.code).inc()
