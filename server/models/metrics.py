"""Metrics of the models, their engines and devices, read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from fs_runtime.engine import SmoothingEngine
from fs_runtime.engine.cache.shared import LOOKUP_OUTCOMES, WRITE_OUTCOMES
from fs_runtime.system.gpu import GpuState, gpu_state
from server.models.directory import ModelDirectory
from server.models.served import ServedModel
from server.observability.metric_rows import Scraped
from server.observability.metric_table import MetricTable

_ENGINE: dict[Scraped, Callable[[SmoothingEngine], float]] = {
    MetricTable.engine_alive: lambda engine: float(engine.alive),
    MetricTable.engine_heartbeat_age: lambda engine: engine.seconds_since_heartbeat,
    MetricTable.queued_samples: lambda engine: engine.queued_samples,
    MetricTable.queue_limit: lambda engine: engine.queue_limit,
    MetricTable.batch_size: lambda engine: engine.batch_size,
    MetricTable.queued_images: lambda engine: engine.queued_images,
    MetricTable.estimated_wait: lambda engine: engine.estimated_wait or 0.0,
    MetricTable.cache_bytes: lambda engine: engine.cache_bytes,
    MetricTable.cache_images: lambda engine: engine.cached_images,
    MetricTable.batches: lambda engine: engine.batches,
    MetricTable.batch_fill: lambda engine: engine.batch_fill,
    MetricTable.samples: lambda engine: engine.samples_drawn,
}
_GPU: dict[Scraped, Callable[[GpuState], float | None]] = {
    MetricTable.gpu_memory_total: lambda state: state.total_bytes,
    MetricTable.gpu_memory_used: lambda state: state.used_bytes,
    MetricTable.gpu_memory_reserved: lambda state: state.reserved_bytes,
    MetricTable.gpu_memory_limit: lambda state: state.limit_bytes,
    MetricTable.gpu_utilization: lambda state: state.utilization,
}


def register_models(registry: CollectorRegistry, models: ModelDirectory) -> None:
    """Adds the figures of all models to a registry, of each while it runs."""
    registry.register(_ModelCollector(models))


class _ModelCollector(Collector):
    """Asks the engines at each scrape, so that figures are of now, also when no request comes."""

    def __init__(self, models: ModelDirectory) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """All families; those of the GPU have no samples where there is none."""
        models = self._models.running
        yield MetricTable.model_state.family(((name, state), 1) for name, state in self._models.states.items())
        yield MetricTable.model_info.family((_identity(model), {}) for model in models)
        for row, value in _ENGINE.items():
            yield row.family(((model.name,), value(model.engine)) for model in models)
        yield MetricTable.engine_faults.family(fault for model in models for fault in _faults(model))
        yield from _shared_caches(models)
        yield from _gpus(gpu_state(model.engine.encoder.device) for model in models)


def _identity(model: ServedModel) -> tuple[str, ...]:
    encoder = model.engine.encoder
    return model.name, encoder.family, encoder.fingerprint, str(encoder.device)


def _faults(model: ServedModel) -> Iterator[tuple[tuple[str, str], int]]:
    yield (model.name, "out_of_memory"), model.engine.out_of_memory_events
    yield (model.name, "scheduler"), model.engine.scheduler_faults


def _gpus(found: Iterable[GpuState | None]) -> Iterator[Metric]:
    states = {state.name: state for state in found if state is not None}  # models may share a device
    for row, value in _GPU.items():
        yield row.family(((state.name, state.model), value(state)) for state in states.values())


def _shared_caches(models: Sequence[ServedModel]) -> Iterator[Metric]:
    caches = {model.name: cache for model in models if (cache := model.engine.shared_cache) is not None}
    if not caches:
        return
    yield MetricTable.shared_cache_up.family(((name,), float(cache.up)) for name, cache in caches.items())
    yield MetricTable.shared_cache_lookups.family(
        ((name, outcome), cache.lookups[outcome]) for name, cache in caches.items() for outcome in LOOKUP_OUTCOMES
    )
    yield MetricTable.shared_cache_writes.family(
        ((name, outcome), cache.writes[outcome]) for name, cache in caches.items() for outcome in WRITE_OUTCOMES
    )
