"""Metrics of the smoothing engine and its device, read at each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from fs_runtime.engine import SmoothingEngine
from fs_runtime.engine.shared_cache import LOOKUP_OUTCOMES, WRITE_OUTCOMES, SharedCache
from fs_runtime.gpu import gpu_state


def register_engine(registry: CollectorRegistry, engine: SmoothingEngine, model_name: str) -> None:
    """Adds the engine's figures to a registry."""
    registry.register(_EngineCollector(engine, model_name))


class _EngineCollector(Collector):
    """Asks the engine at each scrape, so that figures are of now, also when no request comes."""

    def __init__(self, engine: SmoothingEngine, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        """All families; those of the GPU have no samples where there is none."""
        engine = self._engine
        yield InfoMetricFamily(
            "fs_model",
            "The model that is served, and digests of what is smoothed.",
            {
                "model": self._model_name,
                "family": engine.encoder.family,
                "fingerprint": engine.encoder.fingerprint,
                "device": str(engine.encoder.device),
            },
        )
        for name, help_text, value in (
            ("fs_engine_alive", "1 while the thread that runs the smoothing passes is alive.", float(engine.alive)),
            (
                "fs_engine_heartbeat_age_seconds",
                "Seconds since that thread last said that it is there.",
                engine.seconds_since_heartbeat,
            ),
            ("fs_queued_samples", "Noise samples asked for and not yet drawn.", engine.queued_samples),
            ("fs_queue_limit_samples", "Noise samples that may wait before requests are shed.", engine.queue_limit),
            ("fs_batch_size_samples", "Noise samples that one batch holds.", engine.batch_size),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)
        # How full batches are is the ratio of their increases, whatever the shapes of the images.
        yield CounterMetricFamily("fs_batches", "Batches run.", engine.batches)
        yield CounterMetricFamily("fs_batch_fill", "Sum over the batches of the part that was used.", engine.batch_fill)
        yield GaugeMetricFamily("fs_queued_images", "Images waiting or being smoothed.", engine.queued_images)
        yield GaugeMetricFamily(
            "fs_estimated_wait_seconds",
            "Time until all that waits is done, at the rate of late.",
            engine.estimated_wait or 0.0,
        )
        yield CounterMetricFamily("fs_samples", "Noise samples drawn.", engine.samples_drawn)
        yield GaugeMetricFamily("fs_cache_bytes", "Memory that cached images take.", engine.cache_bytes)
        yield GaugeMetricFamily("fs_cache_images", "Images in the cache.", engine.cached_images)
        if engine.shared_cache is not None:
            yield from _shared_cache(engine.shared_cache)
        faults = CounterMetricFamily(
            "fs_engine_faults", "Batches that did not fit into memory, and faults of the scheduler.", labels=["kind"]
        )
        faults.add_metric(["out_of_memory"], engine.out_of_memory_events)
        faults.add_metric(["scheduler"], engine.scheduler_faults)
        yield faults
        yield from self._gpu()

    def _gpu(self) -> Iterator[Metric]:
        state = gpu_state(self._engine.encoder.device)
        for name, help_text, field in (
            ("fs_gpu_memory_total_bytes", "Memory of the GPU.", "total_bytes"),
            ("fs_gpu_memory_used_bytes", "GPU memory taken by all processes.", "used_bytes"),
            ("fs_gpu_memory_reserved_bytes", "GPU memory taken by the gateway.", "reserved_bytes"),
            ("fs_gpu_memory_limit_bytes", "GPU memory that the gateway may take.", "limit_bytes"),
            ("fs_gpu_utilization_ratio", "Part of the time that the GPU worked.", "utilization"),
        ):
            family = GaugeMetricFamily(name, help_text, labels=["device", "gpu"])
            if state is not None and (value := getattr(state, field)) is not None:
                family.add_metric([state.name, state.model], value)
            yield family


def _shared_cache(cache: SharedCache) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "fs_shared_cache_up", "1 while the Redis that replicas share images in answers.", float(cache.up)
    )
    for name, help_text, outcomes, counts in (
        (
            "fs_shared_cache_lookups",
            "Images looked up there: found, claimed (nothing was there), expired, unusable (forged, damaged), failed "
            "(Redis), busy (all connections), skipped (Redis failed lately).",
            LOOKUP_OUTCOMES,
            cache.lookups,
        ),
        (
            "fs_shared_cache_writes",
            "Images to be written there: stored, kept (as many samples are there), other (other draws are there), "
            "expired, too_large, refused (Redis is full), failed, dropped (too many wait), skipped (it failed lately).",
            WRITE_OUTCOMES,
            cache.writes,
        ),
    ):
        family = CounterMetricFamily(name, help_text, labels=["outcome"])
        for outcome in outcomes:
            family.add_metric([outcome], counts[outcome])
        yield family
