"""Metrics of each model: series with its name, which go away when it is unloaded."""

from __future__ import annotations

from collections.abc import Sequence

from fs_runtime.robustness import ImageRobustness
from server.observability.metric_table import MetricTable
from server.observability.upstream_metrics import ModelUpstreamMetrics, UpstreamMetrics


class ModelFamilies:
    """The metrics that have a label ``model``.

    Args:
        table: All metrics.
        routes: Paths of the routes whose requests name a model.
    """

    def __init__(self, table: MetricTable, routes: Sequence[str]) -> None:
        self._table = table
        self._routes = tuple(routes)
        self._upstreams = UpstreamMetrics(table)

    def of_model(self, model: str) -> ModelMetrics:
        """Those of one model, all series that are sure to come at zero."""
        self._table.start_model(model, self._routes)
        return ModelMetrics(self._table, model, ModelUpstreamMetrics(self._table, self._upstreams, model))

    def forget(self, model: str) -> None:
        """Takes all series of a model away."""
        self._upstreams.forget(model)
        self._table.remove(model=model)


class ModelMetrics:
    """What is counted of one model."""

    def __init__(self, table: MetricTable, model: str, upstreams: ModelUpstreamMetrics) -> None:
        self._table = table
        self._model = model
        self.upstreams = upstreams

    def count_request(self, route: str) -> None:
        """Counts one request to a route, of which there are few."""
        self._table.model_requests.labels(route=route, model=self._model).inc()

    def observe_stage(self, name: str, seconds: float) -> None:
        """Notes how long one stage of a request took."""
        self._table.stage_seconds.labels(stage=name, model=self._model).observe(seconds)

    def observe_image(self, image: ImageRobustness, *, own_parameters: bool) -> None:
        """Counts one certificate.

        Args:
            image: The certificate.
            own_parameters: Whether the request chose what the certificate depends on, such as sigma or samples.
        """
        table, model = self._table, self._model
        parameters = "own" if own_parameters else "default"
        noisy = image.sigma > 0
        certified = str(image.certified).lower() if noisy else "off"
        table.images.labels(certified=certified, parameters=parameters, model=model).inc()
        table.samples_per_image.labels(model=model).observe(image.samples)
        table.endings.labels(ended=image.ended, model=model).inc()
        if noisy:
            table.similarity.labels(parameters=parameters, model=model).observe(image.smoothed.best or 0.0)
            table.norm_lower.labels(parameters=parameters, model=model).observe(image.norm.lower)
        if image.fidelity is not None:
            table.fidelity.labels(parameters=parameters, model=model).observe(max(image.fidelity.served, 0.0))
        self.observe_stage("queue", image.timings.queue_seconds)
        self.observe_stage("smoothing", image.timings.smoothing_seconds)

    def observe_answer(
        self,
        outcome: str,
        radius: float,
        agreement: float | None,
        shortfall: str | None,
        *,
        copies: int,
        own_parameters: bool,
    ) -> None:
        """Counts one answer that was voted on.

        Args:
            outcome: Whether it is certified, and where.
            radius: Certified, on the encoder's images; 0 for none.
            agreement: Share of the votes for it; None where there is no winner.
            shortfall: Why it is not certified at the asked radius; None where it is.
            copies: That were asked about.
            own_parameters: Whether the request chose what the radius depends on, such as sigma or what is voted on.
        """
        table, model = self._table, self._model
        parameters = "own" if own_parameters else "default"
        table.answers.labels(parameters=parameters, outcome=outcome, model=model).inc()
        table.answer_radius.labels(parameters=parameters, model=model).observe(radius)
        table.copies_per_answer.labels(model=model).observe(copies)
        if agreement is not None:
            table.answer_agreement.labels(model=model).observe(agreement)
        if shortfall is not None:
            table.answer_abstentions.labels(reason=shortfall, model=model).inc()

    def count_votes(self, answered: int, failed: int) -> None:
        """Counts noisy copies that were asked about."""
        self._table.votes.labels(outcome="answered", model=self._model).inc(answered)
        self._table.votes.labels(outcome="failed", model=self._model).inc(failed)

    def count_cache(self, outcome: str | None) -> None:
        """Counts what the cache did for one image; None: it was not used."""
        self._table.cache_requests.labels(outcome=outcome or "off", model=self._model).inc()

    def count_decision(self, decision: str) -> None:
        """Counts what followed from the verdicts on one request."""
        self._table.policy_decisions.labels(decision=decision, model=self._model).inc()

    def count_tokens(self, direction: str, count: float) -> None:
        """Counts tokens that the language model reported."""
        self._table.tokens.labels(direction=direction, model=self._model).inc(count)

    def count_language_model_error(self, code: str) -> None:
        """Counts one failure of the language model."""
        self._table.language_model_errors.labels(code=code, model=self._model).inc()
