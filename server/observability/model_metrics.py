"""Metrics of each model: series with its name, which go away when it is unloaded."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from fs_runtime.robustness import ImageRobustness
from server.observability.upstream_metrics import ModelUpstreamMetrics, UpstreamMetrics

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# Denser towards 1, where certificates live.
_SIMILARITY = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0)
_STAGES = ("queue", "smoothing", "certificate", "first_token", "language_model")


class ModelFamilies:
    """The metrics that have a label ``model``."""

    def __init__(self, registry: CollectorRegistry, routes: Sequence[str]) -> None:
        self.routes = tuple(routes)
        self.stage_seconds = Histogram(
            "fs_stage_duration_seconds",
            "Time by stage: fetch and decode (model is empty), queue, smoothing, certificate, first_token, "
            "language_model.",
            ["stage", "model"],
            buckets=SECONDS,
            registry=registry,
        )
        self.requests = Counter(
            "fs_model_requests",
            "Requests that a model was found for, by route.",
            ["route", "model"],
            registry=registry,
        )
        self.tokens = Counter(
            "fs_language_model_tokens",
            "Tokens that the language model reported, by direction: input, output.",
            ["direction", "model"],
            registry=registry,
        )
        # A request that chooses its own sigma, samples or radius says little about its images: alerts take each alone.
        self.images = Counter(
            "fs_images",
            "Images smoothed, by whether a similarity was certified (off: without noise), and by whether the request "
            "left the parameters to the operator (default) or gave some itself (own).",
            ["certified", "parameters", "model"],
            registry=registry,
        )
        self.samples_per_image = Histogram(
            "fs_samples_per_image",
            "Noise samples behind one image, those that were drawn for earlier requests included.",
            ["model"],
            buckets=(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
            registry=registry,
        )
        self.endings = Counter(
            "fs_sampling_endings",
            "Images by why sampling ended: samples (all drawn), reached, out_of_reach.",
            ["ended", "model"],
            registry=registry,
        )
        self.similarity = Histogram(
            "fs_certified_similarity",
            "Certified cosine similarity at the asked radius; 0 for none. Images smoothed with noise only.",
            ["parameters", "model"],
            buckets=_SIMILARITY,
            registry=registry,
        )
        self.norm_lower = Histogram(
            "fs_norm_lower",
            "Lower bound of rho, the norm of the smoothed feature. Images smoothed with noise only.",
            ["parameters", "model"],
            buckets=_SIMILARITY,
            registry=registry,
        )
        self.policy_decisions = Counter(
            "fs_policy_decisions",
            "Requests that a minimum similarity was asked of, by decision: pass, flag, withhold, reject.",
            ["decision", "model"],
            registry=registry,
        )
        self.cache_requests = Counter(
            "fs_cache_requests",
            "Images by what the cache did: hit (nothing was drawn), extended (samples were added), miss, off.",
            ["outcome", "model"],
            registry=registry,
        )
        self.language_model_errors = Counter(
            "fs_language_model_errors",
            "Failures of the language model, by code.",
            ["code", "model"],
            registry=registry,
        )
        self.upstreams = UpstreamMetrics(registry)

    def of_model(self, model: str) -> ModelMetrics:
        """Those of one model, all series that are sure to come at zero."""
        return ModelMetrics(self, model)

    def forget(self, model: str) -> None:
        """Takes all series of a model away."""
        for metric in (
            self.stage_seconds,
            self.requests,
            self.tokens,
            self.images,
            self.samples_per_image,
            self.endings,
            self.similarity,
            self.norm_lower,
            self.policy_decisions,
            self.cache_requests,
            self.language_model_errors,
        ):
            metric.remove_by_labels({"model": model})
        self.upstreams.forget(model)


class ModelMetrics:
    """What is counted of one model."""

    def __init__(self, families: ModelFamilies, model: str) -> None:
        self._families = families
        self._model = model
        self.upstreams: ModelUpstreamMetrics = families.upstreams.of_model(model)
        self._start_at_zero()

    def _start_at_zero(self) -> None:
        """Makes series that are sure to come: an alert cannot watch what appears with the first fault."""
        families, model = self._families, self._model
        for route in families.routes:
            families.requests.labels(route=route, model=model)
        for decision in ("pass", "flag", "withhold", "reject"):
            families.policy_decisions.labels(decision=decision, model=model)
        for outcome in ("hit", "extended", "miss", "off"):
            families.cache_requests.labels(outcome=outcome, model=model)
        for name in _STAGES:
            families.stage_seconds.labels(stage=name, model=model)
        families.samples_per_image.labels(model=model)
        for parameters in ("default", "own"):
            families.similarity.labels(parameters=parameters, model=model)
            families.norm_lower.labels(parameters=parameters, model=model)
            for certified in ("true", "false", "off"):
                families.images.labels(certified=certified, parameters=parameters, model=model)
        for ended in ("samples", "reached", "out_of_reach"):
            families.endings.labels(ended=ended, model=model)
        for direction in ("input", "output"):
            families.tokens.labels(direction=direction, model=model)
        for cause in ("unavailable", "timeout", "broken_off", "failed", "refused"):
            families.language_model_errors.labels(code=f"language_model_{cause}", model=model)

    def count_request(self, route: str) -> None:
        """Counts one request to a route, of which there are few."""
        self._families.requests.labels(route=route, model=self._model).inc()

    def observe_stage(self, name: str, seconds: float) -> None:
        """Notes how long one stage of a request took."""
        self._families.stage_seconds.labels(stage=name, model=self._model).observe(seconds)

    def observe_image(self, image: ImageRobustness, *, own_parameters: bool) -> None:
        """Counts one certificate.

        Args:
            image: The certificate.
            own_parameters: Whether the request chose what the certificate depends on, such as sigma or samples.
        """
        families, model = self._families, self._model
        parameters = "own" if own_parameters else "default"
        noisy = image.sigma > 0
        certified = str(image.certified).lower() if noisy else "off"
        families.images.labels(certified=certified, parameters=parameters, model=model).inc()
        families.samples_per_image.labels(model=model).observe(image.samples)
        families.endings.labels(ended=image.ended, model=model).inc()
        if noisy:
            families.similarity.labels(parameters=parameters, model=model).observe(image.smoothed.best or 0.0)
            families.norm_lower.labels(parameters=parameters, model=model).observe(image.norm.lower)
        self.observe_stage("queue", image.timings.queue_seconds)
        self.observe_stage("smoothing", image.timings.smoothing_seconds)

    def count_cache(self, outcome: str | None) -> None:
        """Counts what the cache did for one image; None: it was not used."""
        self._families.cache_requests.labels(outcome=outcome or "off", model=self._model).inc()

    def count_decision(self, decision: str) -> None:
        """Counts what followed from the verdicts on one request."""
        self._families.policy_decisions.labels(decision=decision, model=self._model).inc()

    def count_tokens(self, direction: str, count: float) -> None:
        """Counts tokens that the language model reported."""
        self._families.tokens.labels(direction=direction, model=self._model).inc(count)

    def count_language_model_error(self, code: str) -> None:
        """Counts one failure of the language model."""
        self._families.language_model_errors.labels(code=code, model=self._model).inc()
