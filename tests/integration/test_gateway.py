"""The gateway with its embedded language model, over real HTTP, with the real client."""

import base64
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine, worker
from fs_runtime.receipts import parse_receipt
from fs_runtime.receipts.verify import verify
from fs_runtime.smoothing.smoother import Smoother
from server.models.loading import load_model
from server.settings.gateway import Settings

from .gateway import TINY, Gateway, chat, data_url, picture, running_gateway, user


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path, engine: SmoothingEngine) -> Iterator[Gateway]:
    with running_gateway(tiny_llava, engine, max_body_bytes=2_000_000, max_image_bytes=1_000_000) as running:
        yield running


def check_certificate(certificate: dict[str, Any], samples: int = 16) -> None:
    assert certificate["samples"] == samples
    assert 0 <= certificate["norm"]["lower"] <= certificate["norm"]["estimate"] + 0.2
    smoothed = certificate["smoothed"]
    best = smoothed["best"]
    assert certificate["certified"] is (best is not None)
    assert best is None or 0 < best <= 1
    assert best == smoothed["spectral"] or smoothed["spectral"] is None
    ordered = [smoothed[name] or 0 for name in ("fcsb", "chi_squared", "tight", "best")]
    assert max(ordered[:2]) <= ordered[2] <= ordered[3]
    alphas = certificate["alphas"]
    assert alphas["norm"] + alphas["spread"] == pytest.approx(1 - certificate["confidence"])
    assert certificate["fingerprints"]["model"].startswith("sha256:")


# --- the client's ordinary life ---------------------------------------------------------------------------------------


def test_one_image(gateway: Gateway) -> None:
    answer = gateway.client().chat.completions.create(**chat(picture(1)))
    assert isinstance(answer, ChatCompletion)
    assert answer.model == TINY
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    robustness = answer.model_extra["robustness"]
    (certificate,) = robustness["images"]
    check_certificate(certificate)


def test_streaming_gives_the_same_text_and_the_certificate_last(gateway: Gateway) -> None:
    body = chat(
        picture(1), stream_options={"include_usage": True}, stream=True, extra_body={"robustness": {"sigma": 0}}
    )
    chunks = list(gateway.client().chat.completions.create(**body))
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    plain = gateway.client().chat.completions.create(**chat(picture(1), extra_body={"robustness": {"sigma": 0}}))
    assert text == plain.choices[0].message.content
    assert [bool((chunk.model_extra or {}).get("robustness")) for chunk in chunks] == [False] * (len(chunks) - 1) + [
        True
    ]
    assert chunks[-1].usage == plain.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_streaming_headers_carry_the_similarity_before_the_first_token(gateway: Gateway) -> None:
    body = chat(picture(1), stream=True, robustness={"radius": 0.001, "samples": 64, "confidence": 0.9})
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        header = float(response.headers["x-robustness-similarity"])
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    (certificate,) = json.loads(events[-2])["robustness"]["images"]
    assert header == pytest.approx(certificate["smoothed"]["best"], abs=1e-6)
    assert response.headers["x-robustness-certified"] == "true"


def test_several_images_and_turns(gateway: Gateway) -> None:
    messages = [
        {"role": "system", "content": "You are brief."},
        user(picture(1), picture(2), text="Compare."),
        {"role": "assistant", "content": "They differ."},
        user(picture(3), text="And this?"),
    ]
    answer = gateway.post("/v1/chat/completions", chat() | {"messages": messages}).json()
    assert len(answer["robustness"]["images"]) == 3
    for certificate in answer["robustness"]["images"]:
        check_certificate(certificate)


def test_text_only_says_that_there_was_nothing_to_certify(gateway: Gateway) -> None:
    response = gateway.post("/v1/chat/completions", chat(text="Hello"))
    assert response.json()["robustness"] == {
        "certified": None,
        "satisfied": None,
        "decision": None,
        "detail": "nothing to certify: the request holds no image",
        "requirements": [],
        "answer": None,
        "images": [],
    }
    assert response.headers["x-robustness-certified"] == "none"


def test_images_matter(gateway: Gateway) -> None:
    answers = {
        gateway.post("/v1/chat/completions", chat(picture(seed), robustness={"sigma": 0})).json()["choices"][0][
            "message"
        ]["content"]
        for seed in range(6)
    }
    assert len(answers) > 1


def test_options_are_honoured(gateway: Gateway) -> None:
    robustness = {
        "sigma": 0.3,
        "samples": 40,
        "confidence": 0.95,
        "radius": 0.2,
        "space": "client",
        "granularity": "token",
    }
    answer = gateway.post("/v1/chat/completions", chat(picture(1, size=112), robustness=robustness)).json()
    (certificate,) = answer["robustness"]["images"]
    assert certificate["sigma"] == 0.3
    assert certificate["samples"] == 40
    assert certificate["confidence"] == 0.95
    assert certificate["granularity"] == "token"
    assert certificate["radius"]["client"] == 0.2
    assert certificate["radius"]["model"] == pytest.approx(0.2 * 0.503, rel=0.02)  # 112 to 56 pixels halves it


def test_without_noise_nothing_is_certified(gateway: Gateway) -> None:
    answer = gateway.post("/v1/chat/completions", chat(picture(1), robustness={"sigma": 0})).json()
    (certificate,) = answer["robustness"]["images"]
    assert certificate["certified"] is False
    assert set(certificate["smoothed"].values()) == {None}
    assert certificate["samples"] == 1


def test_embedded_generation_options(gateway: Gateway) -> None:
    def text(**options: Any) -> tuple[str, str]:
        body = chat(picture(1), robustness={"sigma": 0}) | options
        choice = gateway.post("/v1/chat/completions", body).json()["choices"][0]
        return choice["message"]["content"], choice["finish_reason"]

    full, reason = text(max_tokens=12)
    assert reason == "length"
    stop = full[4:6]
    cut, reason = text(max_tokens=12, stop=[stop])
    assert reason == "stop"
    assert cut == full[: full.index(stop)]
    assert text(max_completion_tokens=3)[0] == full[:3]
    assert text(temperature=1.5, seed=3) == text(temperature=1.5, seed=3)
    assert len({text(temperature=1.5, seed=seed)[0] for seed in range(4)}) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1e-40},
        {"temperature": 9e-6},
        {"temperature": 1e-5},
        {"seed": 2**64 - 1, "temperature": 1},
        {"seed": -(2**63), "temperature": 1},
        {"stop": ["\x00"] * 16},
        {"stop": "\x00" * 1000},
        {"response_format": {"type": "text"}, "logprobs": False, "tools": [], "tool_choice": "none"},
        {"logit_bias": {}, "top_logprobs": 0, "parallel_tool_calls": True, "service_tier": "auto"},
        {"modalities": ["text"], "prompt_cache_key": "a", "safety_identifier": "b", "user": "c"},
        {"prediction": None, "audio": None, "robustness": None},
        {"messages": [{"role": "developer", "content": "You are brief."}, {"role": "user", "content": "Hello"}]},
        {"response_format": None, "logprobs": None, "tools": None, "tool_choice": "auto", "stop": None},
    ],
)
def test_options_at_the_edge_and_those_without_effect(gateway: Gateway, options: dict[str, Any]) -> None:
    response = gateway.post("/v1/chat/completions", chat(max_tokens=2) | options)
    assert response.status_code == 200, response.text


def test_image_tokens_in_text_are_not_images(gateway: Gateway) -> None:
    body = chat(picture(1), text="What does <image> mean? <image><image>")
    assert gateway.post("/v1/chat/completions", body).status_code == 200
    assert gateway.post("/v1/chat/completions", chat(text="<image>")).status_code == 200


def test_certify(gateway: Gateway) -> None:
    response = gateway.post("/v1/certify", {"image": data_url(picture(1)), "robustness": {"samples": 32}})
    assert response.status_code == 200
    body = response.json()
    assert body["object"] == "certificate"
    check_certificate(body["robustness"]["images"][0], samples=32)
    assert response.headers["x-robustness-samples"] == "32"
    assert gateway.post("/v1/certify", {"image": data_url(picture(1)), "robustness": None}).status_code == 200


def test_models_health_metrics_and_openapi(gateway: Gateway) -> None:
    (model,) = gateway.client().models.list().data
    assert model.id == TINY
    assert httpx.get(f"{gateway.url}/livez").json() == {"live": True}
    assert httpx.get(f"{gateway.url}/readyz").json()["ready"] is True
    gateway.post("/v1/certify", {"image": data_url(picture(1))})
    text = httpx.get(f"{gateway.url}/metrics").text
    for line in (
        'fs_requests_total{route="/v1/certify",status="200"}',
        "fs_samples_total",
        "fs_certified_similarity_bucket",
        'fs_stage_duration_seconds_count{model="tiny-llava",stage="smoothing"}',
    ):
        assert line in text
    schema = httpx.get(f"{gateway.url}/openapi.json").json()
    assert 'fs_requests_total{route="/openapi.json",status="200"} 1.0' in httpx.get(f"{gateway.url}/metrics").text
    assert {"/v1/chat/completions", "/v1/certify", "/v1/models", "/livez", "/readyz", "/metrics"} <= schema[
        "paths"
    ].keys()


def test_one_model_is_described_as_in_the_list(tiny_llava: Path, engine: SmoothingEngine) -> None:
    with running_gateway(tiny_llava, engine, served_model_name="org/tiny/1", api_keys=["secret"]) as gateway:
        client = gateway.client("secret")
        assert client.models.retrieve("org/tiny/1") == client.models.list().data[0]
        key = {"authorization": "Bearer secret"}
        assert httpx.get(f"{gateway.url}/v1/models/org/tiny/1", headers=key).json()["id"] == "org/tiny/1"
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("org/tiny")
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.AuthenticationError):
            gateway.client().models.retrieve("org/tiny/1")


def test_request_ids(gateway: Gateway) -> None:
    given = httpx.get(f"{gateway.url}/livez", headers={"x-request-id": "abc-1"}).headers["x-request-id"]
    assert given == "abc-1"
    for bad in ("a b", "x" * 200, "", "é".encode()):
        made = httpx.get(f"{gateway.url}/livez", headers={"x-request-id": bad}).headers["x-request-id"]
        assert made.startswith("req-")


# --- policies ---------------------------------------------------------------------------------------------------------


def test_below_the_minimum_similarity(gateway: Gateway) -> None:
    asked = {"min_similarity": 0.999, "radius": 0.2}
    flagged = gateway.post("/v1/chat/completions", chat(picture(1), robustness=asked))
    assert flagged.status_code == 200
    assert flagged.json()["robustness"]["satisfied"] is False
    rejected = gateway.post("/v1/chat/completions", chat(picture(1), robustness=asked | {"on_failure": "reject"}))
    assert rejected.status_code == 422
    assert rejected.json()["error"]["code"] == "certificate_below_minimum"
    assert rejected.json()["robustness"]["images"][0]["satisfied"] is False
    # Nothing is certified at this radius, which does not even satisfy a minimum of 0; at a smaller one something is.
    for radius, satisfied in ((0.2, False), (0.001, True)):
        asked = {"min_similarity": 0.0, "radius": radius, "samples": 64, "confidence": 0.9}
        answer = gateway.post("/v1/chat/completions", chat(picture(1), robustness=asked)).json()
        assert answer["robustness"]["satisfied"] is satisfied


def test_adaptive_sampling(gateway: Gateway) -> None:
    asked = {"adaptive": True, "radius": 0.005, "samples": 512, "confidence": 0.95}
    response = gateway.post("/v1/chat/completions", chat(picture(1), robustness=asked | {"min_similarity": 0.5}))
    (certificate,) = response.json()["robustness"]["images"]
    assert certificate["ended"] == "reached"
    assert certificate["samples"] < 512
    assert certificate["smoothed"]["best"] >= 0.5
    assert 'fs_sampling_endings_total{ended="reached",model="tiny-llava"}' in httpx.get(f"{gateway.url}/metrics").text
    aimless = gateway.post("/v1/chat/completions", chat(picture(1), robustness=asked))
    assert (aimless.status_code, aimless.json()["error"]["param"]) == (400, "robustness.min_similarity")


def test_curve_and_token_map(gateway: Gateway) -> None:
    asked = {"curve": True, "token_map": True, "samples": 64, "confidence": 0.95, "stage": "projector"}
    response = gateway.post("/v1/chat/completions", chat(picture(1), robustness=asked))
    (certificate,) = response.json()["robustness"]["images"]
    assert certificate["stage"] == "projector"
    curve = certificate["curve"]
    for name, values in curve["certified"].items():
        assert len(values) == len(curve["radius_model"]) == len(curve["radius_client"])
        assert values == sorted(values, reverse=True), name
        assert values[0] > 0.9 or name == "fcsb"
    gain = certificate["radius"]["model"] / certificate["radius"]["client"]
    assert curve["radius_model"][-1] == pytest.approx(gain * curve["radius_client"][-1])
    tokens = certificate["token_map"]
    assert len(tokens["similarity"]) == len(tokens["similarity"][0]) == 4  # patches a side
    assert tokens["confidence"] == 0.95
    plain = gateway.post("/v1/chat/completions", chat(picture(1))).json()["robustness"]["images"][0]
    assert plain["curve"] is plain["token_map"] is plain["floor"] is None


def test_spread_can_be_left_out(gateway: Gateway) -> None:
    options = {"spectral": False, "samples": 16}
    answer = gateway.post("/v1/chat/completions", chat(picture(1), robustness=options)).json()
    (certificate,) = answer["robustness"]["images"]
    assert certificate["spread"] is certificate["smoothed"]["spectral"] is None
    assert certificate["alphas"]["spread"] == 0


def test_centring_needs_statistics(gateway: Gateway) -> None:
    response = gateway.post("/v1/chat/completions", chat(picture(1), robustness={"centred": True}))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "robustness.centred")


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model"),
        ({"model": 3}, 400, "model"),
        ({"model": None}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hello"}, 400, "messages"),
        ({"messages": [{"content": "hello"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, 400, "messages.0.content.0.type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_embeds", "image_embeds": "AA"}]}]}, 400, None),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "uuid": "u"}]}]}, 400, None),
        ({"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}]}, 400, None),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, 400, "messages.0.role"),
        ({"mm_processor_kwargs": {}}, 400, "mm_processor_kwargs"),
        ({"kv_transfer_params": {}}, 400, "kv_transfer_params"),
        ({"prompt_embeds": "AA"}, 400, "prompt_embeds"),
        ({"stream": "perhaps"}, 400, "stream"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tools"),
        ({"response_format": {"type": "grammar"}}, 400, "response_format"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages.0.content.0.text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
            400,
            "messages.0.content.0.text",
        ),
        ({"stop": ["a"] * 17}, 400, "stop"),
        ({"stop": "a" * 1001}, 400, "stop"),
        ({"stop": ["a", "a" * 1001]}, 400, "stop"),
        ({"stop": 3}, 400, "stop"),
        ({"stop": [3]}, 400, "stop.0"),
        ({"seed": 2**64}, 400, "seed"),
        ({"seed": -(2**63) - 1}, 400, "seed"),
        ({"seed": 2**200}, 400, "seed"),
        ({"temperature": 10**400}, 400, "temperature"),
        ({"n": 2}, 400, "n"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"robustness": 3}, 400, "robustness"),
        ({"robustness": {"sgima": 0.1}}, 400, "robustness.sgima"),
        ({"robustness": {"sigma": -0.1}}, 400, "robustness.sigma"),
        ({"robustness": {"sigma": 9}}, 400, "robustness.sigma"),
        ({"robustness": {"sigma": "large"}}, 400, "robustness.sigma"),
        ({"robustness": {"radius": -1}}, 400, "robustness.radius"),
        ({"robustness": {"samples": 0}}, 400, "robustness.samples"),
        ({"robustness": {"samples": 10**9}}, 400, "robustness.samples"),
        ({"robustness": {"samples": 2.5}}, 400, "robustness.samples"),
        ({"robustness": {"sigma": "0.1"}}, 400, "robustness.sigma"),
        ({"robustness": {"on_failure": "reject"}}, 400, "robustness.min_similarity"),
        ({"robustness": {"confidence": 1}}, 400, "robustness.confidence"),
        ({"robustness": {"confidence": 1 - 1e-13}}, 400, "robustness.confidence"),
        ({"robustness": {"granularity": "pixel"}}, 400, "robustness.granularity"),
        ({"robustness": {"min_similarity": 1.1}}, 400, "robustness.min_similarity"),
        ({"robustness": {"seed": 1}}, 403, "robustness.seed"),
    ],
)
def test_invalid_requests_name_the_field(
    gateway: Gateway, changes: dict[str, Any], status: int, param: str | None
) -> None:
    response = gateway.post("/v1/chat/completions", chat(picture(1)) | changes)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert param is None or error["param"] == param
    assert len(error["message"]) > 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 2}, "n: the embedded language model makes one answer; leave n out"),
        ({"tools": [{}]}, "tools: the embedded language model calls no tools; leave tools out"),
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"suffix": "x"}, "suffix: unknown or unsupported field; check its spelling, or leave it out; the embedded"),
        ({"robustness": 3}, "robustness: must be a JSON object"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]}]},
            'messages.0.content.0.image_url: must be an object: {"url": "data:image/png;base64,…"}',
        ),
    ],
)
def test_messages_say_what_to_do(gateway: Gateway, changes: dict[str, Any], message: str) -> None:
    found: str = gateway.post("/v1/chat/completions", chat(picture(1)) | changes).json()["error"]["message"]
    assert found.startswith(message)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["sigma", "radius"])
def test_numbers_that_are_not_numbers(gateway: Gateway, field: str, constant: str) -> None:
    body = json.dumps(chat(picture(1), robustness={field: 12345})).replace("12345", constant)
    response = httpx.post(f"{gateway.url}/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert constant.strip("-") in response.json()["error"]["message"]
    # The same as a string of digits too large for a float.
    response = httpx.post(f"{gateway.url}/v1/chat/completions", content=body.replace(constant, "1e999"))
    assert (response.status_code, response.json()["error"]["param"]) == (400, f"robustness.{field}")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 50_000])
def test_bodies_that_are_not_json_objects(gateway: Gateway, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/certify"):
        response = httpx.post(gateway.url + path, content=body)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_json"


def test_a_huge_body_is_413_with_and_without_a_declared_length(gateway: Gateway) -> None:
    huge = b'{"model": "' + b"x" * 3_000_000 + b'"}'

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(huge), 65536):
            yield huge[start : start + 65536]

    for content in (huge, pieces()):
        response = httpx.post(f"{gateway.url}/v1/chat/completions", content=content)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("data:image/png;base64," + base64.b64encode(b"plain text").decode(), 415, "not_an_image"),
        ("data:image/png;base64,****", 400, "invalid_base64"),
        ("data:image/png;BASE64," + base64.b64encode(b"plain text").decode(), 415, "not_an_image"),
        ("https://example.com/cat.png", 400, "remote_image_disabled"),
        (data_url(picture(1))[:-200], 400, None),
        (data_url(picture(1, size=1)), 400, "image_too_small"),
    ],
)
def test_bad_images(gateway: Gateway, url: str, status: int, code: str | None) -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    for path, body in (
        ("/v1/chat/completions", chat() | {"messages": [message]}),
        ("/v1/certify", {"image": url}),
    ):
        response = gateway.post(path, body)
        assert response.status_code == status
        assert code is None or response.json()["error"]["code"] == code


@pytest.mark.parametrize("detail", ["auto", "low", "high", None])
def test_details_of_an_image_have_no_effect(gateway: Gateway, detail: str | None) -> None:
    body = chat(picture(1), robustness={"sigma": 0})
    plain = gateway.post("/v1/chat/completions", body).json()
    body["messages"][0]["content"][0]["image_url"]["detail"] = detail
    answer = gateway.post("/v1/chat/completions", body).json()
    assert answer["choices"] == plain["choices"]
    body["messages"][0]["content"][0]["image_url"]["detail"] = "zzz"
    response = gateway.post("/v1/chat/completions", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages.0.content.0.image_url.detail")


def test_too_many_images(gateway: Gateway) -> None:
    response = gateway.post("/v1/chat/completions", chat(*[picture(i) for i in range(9)]))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "too_many_images")


def test_context_length(gateway: Gateway) -> None:
    response = gateway.post("/v1/chat/completions", chat(text="x" * 600))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_unknown_urls_and_methods(gateway: Gateway) -> None:
    error = httpx.get(f"{gateway.url}/v1/nothing").json()["error"]
    assert error["code"] == "unknown_url"
    assert "POST /v1/chat/completions" in error["message"]
    response = httpx.get(f"{gateway.url}/v1/chat/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    # No redirect: it would lead to wherever the Host header says.
    slash = httpx.post(f"{gateway.url}/v1/chat/completions/", json={}, headers={"host": "evil.example"})
    assert (slash.status_code, slash.json()["error"]["code"]) == (404, "unknown_url")
    assert "location" not in slash.headers


def test_keys(tiny_llava: Path, engine: SmoothingEngine) -> None:
    with running_gateway(tiny_llava, engine, api_keys=["secret-1", "secret-2"]) as gateway:
        assert gateway.client("secret-2").models.list().data
        with pytest.raises(openai.AuthenticationError, match="API key"):
            gateway.client("secret-3").chat.completions.create(**chat(picture(1)))
        with pytest.raises(openai.AuthenticationError):
            gateway.client().models.list()
        assert gateway.post("/v1/certify", {"image": "x"}).status_code == 401
        assert httpx.get(f"{gateway.url}/livez").status_code == 200


def test_wrong_model_with_the_client(gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny-llava"):
        gateway.client().chat.completions.create(**chat(picture(1)) | {"model": "other"})


# --- many at once -----------------------------------------------------------------------------------------------------


def test_requests_in_flight_share_batches(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    step = gateway.engine.smoother.step

    def counting_step(parts: Any) -> Any:
        sizes.append(len(parts))
        time.sleep(0.05)  # so that the requests meet
        return step(parts)

    monkeypatch.setattr(gateway.engine.smoother, "step", counting_step)
    body = {"image": data_url(picture(1)), "robustness": {"samples": 24}}
    statuses: list[int] = []

    def certify() -> None:
        statuses.append(gateway.post("/v1/certify", body).status_code)

    threads = [threading.Thread(target=certify) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert max(sizes) > 1
    assert len(sizes) <= 8 * 24 // 16 + 4  # batches were full but for the beginning and the end


def test_a_client_that_leaves_stops_costing(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    step = gateway.engine.smoother.step
    monkeypatch.setattr(gateway.engine.smoother, "step", lambda parts: (time.sleep(0.05), step(parts))[1])
    body = json.dumps({"image": data_url(picture(1)), "robustness": {"samples": 4096}}).encode()
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/certify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        _wait_until(lambda: gateway.engine.queued_samples > 1000)
    _wait_until(lambda: gateway.engine.queued_samples == 0)  # 4096 samples would take 13 s
    assert gateway.post("/v1/certify", {"image": data_url(picture(1))}).status_code == 200


def test_a_stalled_smoothing_thread_is_visible(
    tiny_llava: Path, engine: SmoothingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, go = engine.smoother.step, threading.Event()
    with running_gateway(tiny_llava, engine, stall_timeout=1.5) as gateway:
        time.sleep(1.6)
        assert httpx.get(f"{gateway.url}/livez").status_code == 200  # idle is not stalled
        monkeypatch.setattr(engine.smoother, "step", lambda parts: (go.wait(60), step(parts))[1])
        body = {"image": data_url(picture(1))}
        stuck = threading.Thread(target=gateway.post, args=("/v1/certify", body))
        stuck.start()
        try:
            for path in ("livez", "readyz"):
                _wait_until(lambda path=path: httpx.get(f"{gateway.url}/{path}").status_code == 503)
        finally:
            go.set()
            stuck.join()
        _wait_until(lambda: httpx.get(f"{gateway.url}/livez").status_code == 200)
        assert httpx.get(f"{gateway.url}/readyz").json() == {
            "ready": True,
            "engine": True,
            "language_model": True,
            "staying": True,
            "models": {TINY: "ready"},
        }


def test_an_answer_says_that_the_spread_was_left_out(tiny_llava: Path) -> None:
    with closing(load_model(Settings(model=str(tiny_llava), psm="none", max_sketch_bytes=1)).engine) as engine:
        with running_gateway(tiny_llava, engine) as gateway:
            asked = {"receipt": True, "samples": 64}
            answers = [
                gateway.post("/v1/certify", {"image": data_url(picture(1)), "robustness": asked | more}).json()
                for more in ({}, {"spectral": False}, {"granularity": "token"})
            ]
        told, *others = [answer["robustness"] for answer in answers]
        assert "the spread was not bounded for image 0" in told["detail"]
        (image,) = told["images"]
        assert image["spectral_left_out"] is True
        assert (image["spread"], image["smoothed"]["spectral"], image["alphas"]["spread"]) == (None, None, 0)
        assert image["smoothed"]["best"] == image["smoothed"]["tight"] > 0
        receipt = parse_receipt(json.dumps(image["receipt"]).encode())
        found = verify(receipt, np.asarray(picture(1)), lambda: engine.smoother)
        assert found.verdict == "reproduced", found.problems
        for robustness in others:  # who did not ask for it misses nothing
            assert "spread" not in robustness["detail"]
            assert robustness["images"][0]["spectral_left_out"] is False


def test_a_lost_gpu_fails_liveness_and_every_request(tiny_llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault alone is made up: a pass that fails, after which the device computes nothing any more."""
    own = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16, cache_bytes=2**26)
    body = {"image": data_url(picture(1)), "robustness": {"samples": 8}}

    def broken(*arguments: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    with running_gateway(tiny_llava, own) as gateway:
        assert gateway.post("/v1/certify", body).status_code == 200
        monkeypatch.setattr(own.smoother, "step", broken)
        fresh = {**body, "robustness": {"samples": 8, "cache": False}}
        assert gateway.post("/v1/certify", fresh).json()["error"]["code"] == "smoothing_failed"
        assert httpx.get(f"{gateway.url}/livez").status_code == 200  # one image's fault, for the device still works
        monkeypatch.setattr(worker, "device_works", lambda device: False)
        for request in (fresh, body):
            answer = gateway.post("/v1/certify", request)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "device_lost")
            assert answer.headers["retry-after"]
        for path in ("livez", "readyz"):
            assert httpx.get(f"{gateway.url}/{path}").status_code == 503
        metrics = httpx.get(f"{gateway.url}/metrics").text
        assert re.search(r'^fs_engine_alive\{model="[^"]+"\} 0.0$', metrics, re.MULTILINE)
    own.close()


def test_answers_that_wait_for_the_embedded_model_are_bounded(tiny_llava: Path, engine: SmoothingEngine) -> None:
    with running_gateway(tiny_llava, engine, max_waiting=1) as gateway:
        body = chat(picture(1), max_tokens=300, robustness={"sigma": 0})
        with ThreadPoolExecutor(6) as clients:
            answers = list(clients.map(lambda _: gateway.post("/v1/chat/completions", body), range(6)))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert all(answer.json()["error"]["code"] == "overloaded" for answer in answers if answer.status_code == 429)


def _wait_until(condition: Any, limit: float = 5.0) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
