"""When traces are sent, and what leaves with a request to the language model."""

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from server.observability.tracing import TracingError, add_trace_ids, forward_trace, tracing_enabled

SPAN = NonRecordingSpan(SpanContext(0x1234, 0x56, is_remote=True, trace_flags=TraceFlags(1)))


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
    ],
)
def test_the_standard_variables_decide(
    environment: dict[str, str], wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing_enabled() is wanted


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin'"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "'grpc'.*http/protobuf"),
    ],
)
def test_what_is_not_supported_is_said(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TracingError, match=words):
        tracing_enabled()


async def test_the_trace_goes_on_and_nothing_else() -> None:
    request = httpx.Request("POST", "http://vllm")
    before = dict(request.headers)
    await forward_trace(request)
    assert dict(request.headers) == before
    with trace.use_span(SPAN):
        await forward_trace(request)
    assert request.headers.pop("traceparent") == f"00-{0x1234:032x}-{0x56:016x}-01"
    assert dict(request.headers) == before


def test_log_lines_name_the_span() -> None:
    assert add_trace_ids(None, "info", {"event": "x"}) == {"event": "x"}
    with trace.use_span(SPAN):
        event = add_trace_ids(None, "info", {"event": "x"})
    assert event == {"event": "x", "trace_id": f"{0x1234:032x}", "span_id": f"{0x56:016x}"}
