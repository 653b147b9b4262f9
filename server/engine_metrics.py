"""Metrics of the smoothing engine, read from it when they are collected."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fs_runtime.engine import SmoothingEngine


class EngineCollector(Collector):
    """Queue, batches, cache and faults of one engine."""

    def __init__(self, engine: SmoothingEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """All metrics, as they are now."""
        engine = self._engine
        yield CounterMetricFamily("fs_samples", "Noise samples drawn.", engine.samples_drawn)
        yield GaugeMetricFamily("fs_queued_samples", "Noise samples waiting.", engine.queued_samples)
        yield GaugeMetricFamily("fs_queued_images", "Images waiting or being smoothed.", engine.queued_images)
        yield GaugeMetricFamily(
            "fs_estimated_wait_seconds",
            "Time until all that waits is done, at the rate of late.",
            engine.estimated_wait or 0.0,
        )
        yield GaugeMetricFamily(
            "fs_batch_fill_ratio", "Part of the latest batch that was used.", engine.last_batch_fill
        )
        yield GaugeMetricFamily(
            "fs_engine_heartbeat_age_seconds",
            "Time since the smoothing thread came round.",
            engine.seconds_since_heartbeat,
        )
        yield GaugeMetricFamily("fs_cache_bytes", "Memory that cached images take.", engine.cache_bytes)
        yield GaugeMetricFamily("fs_cache_images", "Images in the cache.", engine.cached_images)
        faults = CounterMetricFamily(
            "fs_engine_faults", "Batches that did not fit into memory, and faults of the scheduler.", labels=["kind"]
        )
        faults.add_metric(["out_of_memory"], engine.out_of_memory_events)
        faults.add_metric(["scheduler"], engine.scheduler_faults)
        yield faults
