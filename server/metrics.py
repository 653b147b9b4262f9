"""Prometheus metrics: base units, bounded labels."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from fs_runtime import __version__
from fs_runtime.robustness import ImageRobustness
from server.errors import ApiError
from server.upstream_metrics import UpstreamMetrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# Denser towards 1, where certificates live.
_SIMILARITY = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)
_STAGES = ("fetch", "decode", "queue", "smoothing", "certificate", "first_token", "language_model")


class Metrics:
    """All metrics of one gateway, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
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
            "Time by stage: fetch, decode, queue, smoothing, certificate, first_token, language_model.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            "fs_request_errors",
            "Error answers, also those in the midst of a stream, by code and by whose fault: client or server.",
            ["code", "fault"],
            registry=self.registry,
        )
        self.shed = Counter(
            "fs_requests_shed",
            "Requests turned away because of load, limits or shutdown, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.tokens = Counter(
            "fs_language_model_tokens",
            "Tokens that the language model reported, by direction: input, output.",
            ["direction"],
            registry=self.registry,
        )
        # A request that chooses its own sigma, samples or radius says little about its images: alerts take each alone.
        self.images = Counter(
            "fs_images",
            "Images smoothed, by whether a similarity was certified (off: without noise), and by whether the request "
            "left the parameters to the operator (default) or gave some itself (own).",
            ["certified", "parameters"],
            registry=self.registry,
        )
        self.refused_images = Counter(
            "fs_refused_images", "Images that were not read, by error code.", ["code"], registry=self.registry
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
            "Certified cosine similarity at the asked radius; 0 for none. Images smoothed with noise only.",
            ["parameters"],
            buckets=_SIMILARITY,
            registry=self.registry,
        )
        self.norm_lower = Histogram(
            "fs_norm_lower",
            "Lower bound of rho, the norm of the smoothed feature. Images smoothed with noise only.",
            ["parameters"],
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
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Makes series that are sure to come: an alert cannot watch what appears with the first fault."""
        for decision in ("pass", "flag", "withhold", "reject"):
            self.policy_decisions.labels(decision=decision)
        for limit in ("requests", "images", "samples"):
            self.rate_limited.labels(limit=limit)
        for outcome in ("loaded", "refused"):
            self.access_reloads.labels(outcome=outcome)
        for outcome in ("written", "lost"):
            self.audit_records.labels(outcome=outcome)
        for outcome in ("hit", "extended", "miss", "off"):
            self.cache_requests.labels(outcome=outcome)
        for name in _STAGES:
            self.stage_seconds.labels(stage=name)
        for reason in ("overloaded", "shutting_down"):
            self.shed.labels(reason=reason)
        for parameters in ("default", "own"):
            self.similarity.labels(parameters=parameters)
            self.norm_lower.labels(parameters=parameters)
            for certified in ("true", "false", "off"):
                self.images.labels(certified=certified, parameters=parameters)
        for ended in ("samples", "reached", "out_of_reach"):
            self.endings.labels(ended=ended)
        for direction in ("input", "output"):
            self.tokens.labels(direction=direction)
        for cause in ("unavailable", "timeout", "broken_off", "failed", "refused"):
            self.upstream_errors.labels(code=f"language_model_{cause}")
        for code in ("internal_error", "language_model_unavailable"):
            self.errors.labels(code=code, fault="server")
        self.errors.labels(code="certificate_below_minimum", fault="client")

    def observe_image(self, image: ImageRobustness, *, own_parameters: bool) -> None:
        """Counts one certificate.

        Args:
            image: The certificate.
            own_parameters: Whether the request chose what the certificate depends on, such as sigma or samples.
        """
        parameters = "own" if own_parameters else "default"
        noisy = image.sigma > 0
        certified = str(image.certified).lower() if noisy else "off"
        self.images.labels(certified=certified, parameters=parameters).inc()
        self.samples_per_image.observe(image.samples)
        self.endings.labels(ended=image.ended).inc()
        if noisy:
            self.similarity.labels(parameters=parameters).observe(image.smoothed.best or 0.0)
            self.norm_lower.labels(parameters=parameters).observe(image.norm.lower)
        self.stage_seconds.labels(stage="queue").observe(image.timings.queue_seconds)
        self.stage_seconds.labels(stage="smoothing").observe(image.timings.smoothing_seconds)

    def count_error(self, error: ApiError) -> None:
        """Counts one error answer. Codes are words of the source, never of a request."""
        self.errors.labels(code=error.code, fault="server" if error.status >= 500 else "client").inc()
        if error.status == 429 or error.code == "shutting_down":
            self.shed.labels(reason=error.code).inc()
