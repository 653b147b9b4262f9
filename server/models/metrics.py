"""Metrics of the models, their engines and devices, read at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from fs_runtime.engine import SmoothingEngine
from fs_runtime.engine.cache.shared import LOOKUP_OUTCOMES, WRITE_OUTCOMES, SharedCache
from fs_runtime.system.gpu import GpuState, gpu_state
from server.models.directory import ModelDirectory
from server.models.served import ServedModel

_GAUGES: tuple[tuple[str, str, Callable[[SmoothingEngine], float]], ...] = (
    (
        "fs_engine_alive",
        "1 while the thread that runs the smoothing passes is alive.",
        lambda engine: float(engine.alive),
    ),
    (
        "fs_engine_heartbeat_age_seconds",
        "Seconds since that thread last said that it is there.",
        lambda engine: engine.seconds_since_heartbeat,
    ),
    ("fs_queued_samples", "Noise samples asked for and not yet drawn.", lambda engine: engine.queued_samples),
    (
        "fs_queue_limit_samples",
        "Noise samples that may wait before requests are shed.",
        lambda engine: engine.queue_limit,
    ),
    ("fs_batch_size_samples", "Noise samples that one batch holds.", lambda engine: engine.batch_size),
    ("fs_queued_images", "Images waiting or being smoothed.", lambda engine: engine.queued_images),
    (
        "fs_estimated_wait_seconds",
        "Time until all that waits is done, at the rate of late.",
        lambda engine: engine.estimated_wait or 0.0,
    ),
    ("fs_cache_bytes", "Memory that cached images take.", lambda engine: engine.cache_bytes),
    ("fs_cache_images", "Images in the cache.", lambda engine: engine.cached_images),
)
_COUNTERS: tuple[tuple[str, str, Callable[[SmoothingEngine], float]], ...] = (
    # How full batches are is the ratio of their increases, whatever the shapes of the images.
    ("fs_batches", "Batches run.", lambda engine: engine.batches),
    ("fs_batch_fill", "Sum over the batches of the part that was used.", lambda engine: engine.batch_fill),
    ("fs_samples", "Noise samples drawn.", lambda engine: engine.samples_drawn),
)
_GPU: tuple[tuple[str, str, Callable[[GpuState], float | None]], ...] = (
    ("fs_gpu_memory_total_bytes", "Memory of the GPU.", lambda state: state.total_bytes),
    ("fs_gpu_memory_used_bytes", "GPU memory taken by all processes.", lambda state: state.used_bytes),
    ("fs_gpu_memory_reserved_bytes", "GPU memory taken by the gateway.", lambda state: state.reserved_bytes),
    ("fs_gpu_memory_limit_bytes", "GPU memory that the gateway may take.", lambda state: state.limit_bytes),
    ("fs_gpu_utilization_ratio", "Part of the time that the GPU worked.", lambda state: state.utilization),
)
_SHARED_CACHE: tuple[tuple[str, str, tuple[str, ...], Callable[[SharedCache], Mapping[str, int]]], ...] = (
    (
        "fs_shared_cache_lookups",
        "Images looked up there: found, claimed (nothing was there), expired, unusable (forged, damaged), failed "
        "(Redis), busy (all connections), skipped (Redis failed lately).",
        LOOKUP_OUTCOMES,
        lambda cache: cache.lookups,
    ),
    (
        "fs_shared_cache_writes",
        "Images to be written there: stored, kept (as many samples are there), other (other draws are there), "
        "expired, too_large, refused (Redis is full), failed, dropped (too many wait), skipped (it failed lately).",
        WRITE_OUTCOMES,
        lambda cache: cache.writes,
    ),
)


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
        yield self._states()
        info = InfoMetricFamily(
            "fs_model",
            "The models that are served, and digests of what is smoothed.",
            labels=["model", "family", "fingerprint", "device"],
        )
        for model in models:
            encoder = model.engine.encoder
            info.add_metric([model.name, encoder.family, encoder.fingerprint, str(encoder.device)], {})
        yield info
        for kind, families in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, help_text, value in families:
                family = kind(name, help_text, labels=["model"])
                for model in models:
                    family.add_metric([model.name], value(model.engine))
                yield family
        faults = CounterMetricFamily(
            "fs_engine_faults",
            "Batches that did not fit into memory, and faults of the scheduler.",
            labels=["model", "kind"],
        )
        for model in models:
            faults.add_metric([model.name, "out_of_memory"], model.engine.out_of_memory_events)
            faults.add_metric([model.name, "scheduler"], model.engine.scheduler_faults)
        yield faults
        yield from _shared_caches(models)
        yield from _gpus(gpu_state(model.engine.encoder.device) for model in models)

    def _states(self) -> Metric:
        family = GaugeMetricFamily(
            "fs_model_state",
            "1 for the state of each model: ready, loading, failed (an earlier version may go on to run), leaving (its "
            "last requests are under way).",
            labels=["model", "state"],
        )
        for name, state in self._models.states.items():
            family.add_metric([name, state], 1)
        return family


def _gpus(found: Iterable[GpuState | None]) -> Iterator[Metric]:
    states = {state.name: state for state in found if state is not None}  # models may share a device
    for name, help_text, value in _GPU:
        family = GaugeMetricFamily(name, help_text, labels=["device", "gpu"])
        for state in states.values():
            if (figure := value(state)) is not None:
                family.add_metric([state.name, state.model], figure)
        yield family


def _shared_caches(models: Sequence[ServedModel]) -> Iterator[Metric]:
    caches = {model.name: cache for model in models if (cache := model.engine.shared_cache) is not None}
    if not caches:
        return
    up = GaugeMetricFamily(
        "fs_shared_cache_up", "1 while the Redis that replicas share images in answers.", labels=["model"]
    )
    for name, cache in caches.items():
        up.add_metric([name], float(cache.up))
    yield up
    for family_name, help_text, outcomes, counts in _SHARED_CACHE:
        family = CounterMetricFamily(family_name, help_text, labels=["model", "outcome"])
        for name, cache in caches.items():
            for outcome in outcomes:
                family.add_metric([name, outcome], counts(cache)[outcome])
        yield family
