"""Traces, from a real gateway process to a real OTLP receiver, and on to a real vLLM."""

import base64
import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fs_runtime.reference import example_images, reference_model_path

from .gateway_process import GatewayProcess, gateway_process
from .otlp_receiver import CLIENT_KIND, ERROR_STATUS, SERVER_KIND, OtlpReceiver, Span
from .serve_process import serving
from .vllm_process import EMBEDDINGS_ONLY, VllmServers

IMAGE = base64.b64encode(example_images()["red-circle"].read_bytes()).decode()
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "50"}
STAGES = {"decode", "queue", "smoothing", "certificate"}


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def gateway(receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    log = tmp_path_factory.mktemp("traced") / "log"
    with gateway_process(
        log, "--samples", "64", "--confidence", "0.9", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url, **SOON
    ) as process:
        yield process


def ask(gateway: GatewayProcess, **options: Any) -> tuple[httpx.Response, str, str]:
    """Asks about a picture as a part of a trace of the client's; the answer, and the ids of trace and parent."""
    trace_id, parent_id = secrets.token_hex(16), secrets.token_hex(8)
    content = [
        {"type": "text", "text": "Describe the image, Rumpelstiltskin."},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}"}},
    ]
    body = {"model": "fs-reference", "temperature": 0, "messages": [{"role": "user", "content": content}], **options}
    response = httpx.post(
        f"{gateway.url}/v1/chat/completions",
        json=body,
        timeout=60,
        headers={"traceparent": f"00-{trace_id}-{parent_id}-01", "x-request-id": f"req-{trace_id}"},
    )
    return response, trace_id, parent_id


def complete(spans: list[Span]) -> bool:
    return any(span.kind == SERVER_KIND and span.service == "fs-serve" for span in spans)


def by_name(spans: list[Span]) -> dict[str, Span]:
    named = {span.name: span for span in spans}
    assert len(named) == len(spans)
    return named


def test_a_request_is_one_trace_with_a_span_for_each_stage(gateway: GatewayProcess, receiver: OtlpReceiver) -> None:
    response, trace_id, parent_id = ask(gateway, max_tokens=64)
    assert response.status_code == 200
    spans = by_name(receiver.of_trace(trace_id, complete))
    server = spans.pop("POST /v1/chat/completions")
    assert (server.kind, server.parent_id, server.service) == (SERVER_KIND, parent_id, "fs-serve")
    assert server.attributes == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "fs.request_id": f"req-{trace_id}",
    }
    assert spans.keys() == STAGES | {"chat fs-reference"}
    for span in spans.values():
        assert span.parent_id == server.span_id
        assert server.start <= span.start <= span.end <= server.end + 1_000_000
        assert span.status != ERROR_STATUS
    assert spans["queue"].end == spans["smoothing"].start

    (certificate,) = response.json()["robustness"]["images"]
    noted = spans["certificate"].attributes
    assert noted["fs.similarity"] == certificate["smoothed"]["best"]
    assert noted["fs.norm.lower"] == certificate["norm"]["lower"]
    assert noted["fs.samples"] == certificate["samples"] == spans["smoothing"].attributes["fs.samples"]
    assert spans["queue"].attributes["fs.model"] == spans["smoothing"].attributes["fs.model"] == "fs-reference"
    assert noted["fs.certified"] is certificate["certified"]
    assert noted["fs.sigma"] == certificate["sigma"]

    chat, usage = spans["chat fs-reference"], response.json()["usage"]
    assert chat.kind == CLIENT_KIND
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "embedded",
        "gen_ai.request.model": "fs-reference",
        "gen_ai.request.max_tokens": 64,
        "gen_ai.request.temperature": 0,
        "gen_ai.response.finish_reasons": [response.json()["choices"][0]["finish_reason"]],
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "fs.images": 1,
    }


def test_a_stream_is_traced_to_its_end(gateway: GatewayProcess, receiver: OtlpReceiver) -> None:
    response, trace_id, _ = ask(gateway, stream=True, stream_options={"include_usage": True})
    assert response.text.endswith("data: [DONE]\n\n")
    spans = by_name(receiver.of_trace(trace_id, complete))
    chat = spans["chat fs-reference"]
    first = chat.attributes["gen_ai.response.time_to_first_chunk"]
    assert 0 < first <= (chat.end - chat.start) / 1e9
    assert chat.attributes["gen_ai.usage.output_tokens"] > 0
    assert chat.end <= spans["POST /v1/chat/completions"].end


def test_failures_are_named_by_code_alone(gateway: GatewayProcess, receiver: OtlpReceiver) -> None:
    asked = {"min_similarity": 1.0, "on_failure": "reject", "samples": 4, "cache": False}
    response, trace_id, _ = ask(gateway, robustness=asked)
    assert response.status_code == 422
    spans = by_name(receiver.of_trace(trace_id, complete))
    assert spans.keys() == STAGES | {"POST /v1/chat/completions"}
    rejected = spans["POST /v1/chat/completions"]
    assert rejected.attributes["error.type"] == "certificate_below_minimum"
    assert rejected.status != ERROR_STATUS  # the server did as it was told

    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    httpx.post(f"{gateway.url}/v1/certify", json={"image": "data:image/png;base64,AAAA"}, headers=headers)
    spans = by_name(receiver.of_trace(trace_id, complete))
    assert spans.keys() == {"decode", "POST /v1/certify"}
    assert spans["decode"].status == ERROR_STATUS
    assert spans["decode"].attributes == {"error.type": "not_an_image"}
    assert all(span.events == 0 for span in receiver.spans)


def test_unknown_paths_and_health_checks(gateway: GatewayProcess, receiver: OtlpReceiver) -> None:
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    for path in ("/livez", "/readyz", "/metrics", "/v1/Rumpelstiltskin"):
        httpx.get(gateway.url + path, headers=headers)
    assert [span.name for span in receiver.of_trace(trace_id, complete)] == ["GET"]


def test_no_text_and_no_image_is_sent(gateway: GatewayProcess, receiver: OtlpReceiver) -> None:
    response, trace_id, _ = ask(gateway)
    receiver.of_trace(trace_id, complete)
    sent = b"".join(receiver.raw)
    answer = response.json()["choices"][0]["message"]["content"]
    for secret in ("Rumpelstiltskin", IMAGE[:40], answer, answer.split()[-1]):
        assert secret.encode() not in sent, secret


def test_log_lines_carry_the_ids_of_request_and_trace(gateway: GatewayProcess, receiver: OtlpReceiver) -> None:
    _, trace_id, _ = ask(gateway, messages=[])
    (server,) = receiver.of_trace(trace_id, complete)
    lines = [json.loads(line) for line in gateway.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("trace_id") == trace_id]
    assert line.pop("timestamp")
    assert line.pop("seconds") >= 0
    assert line == {
        "event": "request",
        "level": "info",
        "logger": "server",
        "request_id": f"req-{trace_id}",
        "trace_id": trace_id,
        "span_id": server.span_id,
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 400,
        "tenant": "default",
        "error": "invalid_value",
    }


def test_what_is_left_is_sent_at_the_end(receiver: OtlpReceiver, tmp_path: Path) -> None:
    late = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with gateway_process(tmp_path / "log", "--drain-lead", "0", **late) as gateway:
        _, trace_id, _ = ask(gateway, messages=[])
    assert receiver.of_trace(trace_id, complete)


def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        away = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "600",
        }
        with serving("--drain-lead", "0", stderr=tmp_path / "log", **away) as server:
            ask(GatewayProcess(server.url, tmp_path / "log"), messages=[])
            assert server.stop(25) == 0


@pytest.mark.vllm
def test_vllm_continues_the_trace(
    receiver: OtlpReceiver, vllm_servers: VllmServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SOON | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}).items():
        monkeypatch.setenv(name, value)
    endpoint = f"{receiver.url}/v1/traces"
    vllm = vllm_servers.start(
        reference_model_path(), *EMBEDDINGS_ONLY, "--otlp-traces-endpoint", endpoint, name="fs-reference"
    )
    vllm.wait_until_ready()
    arguments = ["--language-model", "vllm", "--vllm-url", vllm.url, "--samples", "16"]
    with gateway_process(tmp_path / "log", *arguments, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=endpoint) as gateway:
        response, trace_id, _ = ask(gateway)
        assert response.status_code == 200
        spans = by_name(receiver.of_trace(trace_id, lambda spans: complete(spans) and "llm_request" in by_name(spans)))
    assert spans["llm_request"].parent_id == spans["chat fs-reference"].span_id
    assert spans["chat fs-reference"].attributes["gen_ai.provider.name"] == "vllm"
