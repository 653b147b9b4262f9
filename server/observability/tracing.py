"""OpenTelemetry spans of requests. Attributes never hold a request's text, images or keys.

The spans use OpenTelemetry's API, which only forwards a client's ``traceparent`` until :func:`configure_tracing` sets
up an exporter.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Protocol

import httpx
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fs_runtime import __version__
from fs_runtime.robustness import ImageRobustness
from server.errors import ApiError

tracer = trace.get_tracer("fs-serve", __version__)
# Only the trace context is forwarded to the language model, not baggage, which the client could fill with anything.
_PROPAGATOR = TraceContextTextMapPropagator()
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FLUSH_SECONDS = 2.0  # time limit for sending the last spans when the process exits
# Probes and scrapes every few seconds would hide the actual requests.
UNTRACED = frozenset({"/livez", "/readyz", "/metrics"})


class StageMetrics(Protocol):
    """Receives the durations of stages."""

    def observe_stage(self, name: str, seconds: float) -> None:
        """Records one duration."""
        ...


class TracingError(ValueError):
    """The OTEL_* variables ask for something that is not supported or not installed."""


def tracing_enabled() -> bool:
    """Whether the standard OTEL_* variables enable traces, by an OTLP endpoint or an exporter.

    Raises:
        TracingError: They ask for another exporter or protocol than OTLP over HTTP.
    """
    exporter = os.environ.get("OTEL_TRACES_EXPORTER", "").strip()
    named = any(os.environ.get(name) for name in _ENDPOINTS)
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or exporter == "none" or not (exporter or named):
        return False
    if exporter not in ("", "otlp"):
        raise TracingError(f"OTEL_TRACES_EXPORTER is {exporter!r}; traces can be sent with 'otlp', or 'none' of them")
    protocol = next((value for name in _PROTOCOLS if (value := os.environ.get(name))), "http/protobuf")
    if protocol != "http/protobuf":
        raise TracingError(f"the OTLP protocol {protocol!r} is not supported; set {_PROTOCOLS[1]}=http/protobuf")
    return True


def configure_tracing() -> None:
    """Sets up the exporter of the standard OTEL_* variables; does nothing if they do not enable traces.

    Raises:
        TracingError: They ask for something that is not supported, or the packages for it are not installed.
    """
    if not tracing_enabled():
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise TracingError(
            f"the OTEL_* variables ask for traces, but {error.name} is missing; install fs-serve[tracing]"
        ) from None
    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes["service.name"]).startswith("unknown_service"):  # the variables do not name the service
        resource = resource.merge(Resource({"service.name": "fs-serve"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)  # which could take half a minute
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


def flush_spans() -> None:
    """Sends the remaining spans, for at most two seconds, since the collector may be unreachable."""
    flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if flush is not None:
        sending = threading.Thread(target=flush, name="last-traces", daemon=True)  # force_flush ignores its own timeout
        sending.start()
        sending.join(_FLUSH_SECONDS)


class TracingMiddleware:
    """One server span for each request, a child of the client's ``traceparent`` if it sent one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http" or scope["path"] in UNTRACED:
            await self.app(scope, receive, send)
            return
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        with tracer.start_as_current_span(
            method,
            context=_PROPAGATOR.extract(Headers(scope=scope)),
            kind=SpanKind.SERVER,
            attributes={
                "http.request.method": method,
                "url.scheme": scope["scheme"],
                "fs.request_id": scope["state"]["request_id"],
            },
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                await self.app(scope, receive, send_and_note)
            finally:
                route = getattr(scope.get("route"), "path", None)
                if route is not None:  # unknown paths are not recorded: they are the client's text
                    span.update_name(f"{method} {route}")
                    span.set_attribute("http.route", route)
                span.set_attribute("http.response.status_code", status)
                if (error := scope["state"].get("error")) is not None:
                    span.set_attribute("error.type", error.code)
                if status >= 500:
                    span.set_status(StatusCode.ERROR)


@contextmanager
def record_failure(span: Span) -> Iterator[None]:
    """Marks the span as failed if the block raises. Only the error's type: messages may quote the request."""
    try:
        yield
    except Exception as error:
        span.set_status(StatusCode.ERROR)
        span.set_attribute("error.type", error.code if isinstance(error, ApiError) else type(error).__qualname__)
        raise


@contextmanager
def stage(metrics: StageMetrics, name: str, **attributes: AttributeValue) -> Iterator[Span]:
    """Times one stage of a request: makes a span, and on success observes ``fs_stage_duration_seconds``."""
    start = time.perf_counter()
    options: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
    with tracer.start_as_current_span(name, attributes=attributes, **options) as span, record_failure(span):
        yield span
    metrics.observe_stage(name, time.perf_counter() - start)


def record_pass(queue_seconds: float, smoothing_seconds: float, attributes: dict[str, AttributeValue]) -> None:
    """The spans of a smoothing pass that ended just now. It ran beside others on the engine's thread."""
    end = time.time_ns()
    started = end - int(smoothing_seconds * 1e9)
    queued = started - int(queue_seconds * 1e9)
    tracer.start_span("queue", start_time=queued, attributes=attributes).end(started)
    tracer.start_span("smoothing", start_time=started, attributes=attributes).end(end)


def certificate_attributes(image: ImageRobustness) -> dict[str, AttributeValue]:
    """Makes span attributes of a certificate; values that are None are left out."""
    values: dict[str, AttributeValue | None] = {
        "fs.certified": image.certified,
        "fs.satisfied": image.satisfied,
        "fs.similarity": image.smoothed.best,
        "fs.similarity.served": image.served.best,
        "fs.norm.lower": image.norm.lower,
        "fs.norm.estimate": image.norm.estimate,
        "fs.fidelity": None if image.fidelity is None else image.fidelity.served,
        "fs.fidelity.lower": None if image.fidelity is None else image.fidelity.lower,
        "fs.radius.model": image.radius.model,
        "fs.radius.client": image.radius.client,
        "fs.sigma": image.sigma,
        "fs.samples": image.samples,
        "fs.sampling.ended": image.ended,
        "fs.confidence": image.confidence,
    }
    return {name: value for name, value in values.items() if value is not None}


async def forward_trace(request: httpx.Request) -> None:
    """An httpx hook that puts the current ``traceparent`` on a request to the language model."""
    _PROPAGATOR.inject(request.headers)


def add_trace_ids(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A structlog processor that adds the ids of the current span, to correlate logs and traces."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = trace.format_trace_id(context.trace_id)
        event["span_id"] = trace.format_span_id(context.span_id)
    return event
