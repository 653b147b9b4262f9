"""Prometheus metrics: base units, bounded labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from fs_runtime import __version__
from fs_runtime.robustness import ImageRobustness
from server.upstream_metrics import UpstreamMetrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# Denser towards 1, where certificates live.
_SIMILARITY = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 1.0)


class Metrics:
    """All metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fs_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "fs_request_duration_seconds",
            "Time from the first byte in to the last byte out.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.requests_in_flight = Gauge("fs_requests_in_flight", "Requests being answered.", registry=self.registry)
        self.stage_seconds = Histogram(
            "fs_stage_duration_seconds",
            "Time by stage: decode, queue, smoothing, certificate, first_token, language_model.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "fs_images",
            "Images smoothed, by whether a similarity was certified.",
            ["certified"],
            registry=self.registry,
        )
        self.samples_per_image = Histogram(
            "fs_samples_per_image",
            "Noise samples behind one image, those that were drawn for earlier requests included.",
            buckets=(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
            registry=self.registry,
        )
        self.endings = Counter(
            "fs_sampling_endings",
            "Images by why sampling ended: samples (all drawn), reached, out_of_reach.",
            ["ended"],
            registry=self.registry,
        )
        self.similarity = Histogram(
            "fs_certified_similarity",
            "Certified cosine similarity at the asked radius; 0 for none.",
            buckets=_SIMILARITY,
            registry=self.registry,
        )
        self.norm_lower = Histogram(
            "fs_norm_lower",
            "Lower bound of rho, the norm of the smoothed feature.",
            buckets=_SIMILARITY,
            registry=self.registry,
        )
        self.policy_decisions = Counter(
            "fs_policy_decisions",
            "Requests that a minimum similarity was asked of, by decision: pass, flag, withhold, reject.",
            ["decision"],
            registry=self.registry,
        )
        self.rate_limited = Counter(
            "fs_rate_limited",
            "Requests answered 429 by a tenant's limit: requests, images, samples.",
            ["limit"],
            registry=self.registry,
        )
        self.limits_shared = Gauge(
            "fs_rate_limits_shared",
            "1 while Redis counts the rate limits, 0 while this process does so by itself.",
            registry=self.registry,
        )
        self.limits_errors = Counter(
            "fs_rate_limit_storage_errors", "Failed calls of the Redis that counts rate limits.", registry=self.registry
        )
        self.access_reloads = Counter(
            "fs_access_reloads",
            "Changes of the access file, by outcome: loaded, refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.access_file_current = Gauge(
            "fs_access_file_current",
            "1 while the access file on disk is the one in force; 0 while a broken one waits to be mended.",
            registry=self.registry,
        )
        self.audit_records = Counter(
            "fs_audit_records",
            "Audit records by outcome: written, lost.",
            ["outcome"],
            registry=self.registry,
        )
        self.audit_up = Gauge(
            "fs_audit_log_up", "1 while the latest record of the audit log was written.", registry=self.registry
        )
        # Series that are there from the start: an alert cannot watch what appears with the first fault.
        for decision in ("pass", "flag", "withhold", "reject"):
            self.policy_decisions.labels(decision=decision)
        for limit in ("requests", "images", "samples"):
            self.rate_limited.labels(limit=limit)
        for outcome in ("loaded", "refused"):
            self.access_reloads.labels(outcome=outcome)
        for outcome in ("written", "lost"):
            self.audit_records.labels(outcome=outcome)
        self.cache_requests = Counter(
            "fs_cache_requests",
            "Images by what the cache did: hit (nothing was drawn), extended (samples were added), miss, off.",
            ["outcome"],
            registry=self.registry,
        )
        self.upstream_errors = Counter(
            "fs_language_model_errors", "Failures of the language model, by code.", ["code"], registry=self.registry
        )
        self.upstreams = UpstreamMetrics(self.registry)
        Info("fs_build", "Version of the gateway.", registry=self.registry).info({"version": __version__})

    def observe_image(self, image: ImageRobustness) -> None:
        """Counts one certificate."""
        self.images.labels(certified=str(image.certified).lower()).inc()
        self.samples_per_image.observe(image.samples)
        self.endings.labels(ended=image.ended).inc()
        self.similarity.observe(image.smoothed.best or 0.0)
        self.norm_lower.observe(image.norm.lower)
        self.stage_seconds.labels(stage="queue").observe(image.timings.queue_seconds)
        self.stage_seconds.labels(stage="smoothing").observe(image.timings.smoothing_seconds)
