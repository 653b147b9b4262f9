"""Prometheus metrics: base units, bounded labels."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from fs_runtime import __version__
from server.errors import ApiError
from server.observability.model_metrics import SECONDS, ModelFamilies


class Metrics:
    """All metrics of one gateway, in a registry of their own.

    Args:
        model_routes: Paths of the routes whose requests name a model; each model's series of them begin at zero.
    """

    def __init__(self, model_routes: Sequence[str] = ()) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "fs_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "fs_request_duration_seconds",
            "Time from the first byte in to the last byte out.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.requests_in_flight = Gauge("fs_requests_in_flight", "Requests being answered.", registry=self.registry)
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
        self.refused_images = Counter(
            "fs_refused_images", "Images that were not read, by error code.", ["code"], registry=self.registry
        )
        self.rate_limited = Counter(
            "fs_rate_limited",
            "Requests answered 429 by a tenant's limit: requests, images, samples.",
            ["limit"],
            registry=self.registry,
        )
        # The limiter registers it where a Redis is set: elsewhere 0 would look like a fault, and 1 be untrue.
        self.limits_shared = Gauge(
            "fs_rate_limits_shared",
            "1 while Redis counts the rate limits, 0 while this process does so by itself.",
            registry=None,
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
        self.models_file_reloads = Counter(
            "fs_models_file_reloads",
            "Changes of the models file, by outcome: loaded, refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.models_file_current = Gauge(
            "fs_models_file_current",
            "1 while the models file on disk is the one in force; 0 while a broken one waits to be mended.",
            registry=self.registry,
        )
        self.model_loads = Counter(
            "fs_model_loads", "Models loaded, by outcome: loaded, failed.", ["outcome"], registry=self.registry
        )
        self.model_unloads = Counter(
            "fs_model_unloads", "Models whose memory was freed after their last request.", registry=self.registry
        )
        self.models = ModelFamilies(self.registry, model_routes)
        Info("fs_build", "Version of the gateway.", registry=self.registry).info({"version": __version__})
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Makes series that are sure to come: an alert cannot watch what appears with the first fault."""
        for limit in ("requests", "images", "samples"):
            self.rate_limited.labels(limit=limit)
        for outcome in ("loaded", "refused"):
            self.access_reloads.labels(outcome=outcome)
        for outcome in ("written", "lost"):
            self.audit_records.labels(outcome=outcome)
        for outcome in ("loaded", "refused"):
            self.models_file_reloads.labels(outcome=outcome)
        for outcome in ("loaded", "failed"):
            self.model_loads.labels(outcome=outcome)
        for name in ("fetch", "decode"):
            self.models.stage_seconds.labels(stage=name, model="")
        for reason in ("overloaded", "shutting_down"):
            self.shed.labels(reason=reason)
        for code in ("internal_error", "language_model_unavailable"):
            self.errors.labels(code=code, fault="server")
        self.errors.labels(code="certificate_below_minimum", fault="client")

    def observe_stage(self, name: str, seconds: float) -> None:
        """Notes how long a stage took that is the same for all models."""
        self.models.stage_seconds.labels(stage=name, model="").observe(seconds)

    def count_error(self, error: ApiError) -> None:
        """Counts one error answer. Codes are words of the source, never of a request."""
        self.errors.labels(code=error.code, fault="server" if error.status >= 500 else "client").inc()
        if error.status == 429 or error.code == "shutting_down":
            self.shed.labels(reason=error.code).inc()
