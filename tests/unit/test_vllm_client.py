"""Faults of the upstream that a healthy vLLM cannot be made to show."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from server.errors import ApiError
from server.language_models.base import IMAGE_PART, ChatRequest
from server.language_models.vllm import VllmLanguageModel, image_part, vllm_body
from server.settings import Settings

REQUEST = ChatRequest({"model": "ours", "messages": [{"role": "user", "content": "x"}]}, [], "req-1")
Handler = Callable[[httpx.Request], httpx.Response]


def model_with(handler: Handler) -> VllmLanguageModel:
    model = VllmLanguageModel(Settings(vllm_model="theirs"), "ours")
    model._client = httpx.AsyncClient(base_url="http://vllm", transport=httpx.MockTransport(handler))
    return model


async def error_of(handler: Handler, *, stream: bool = False) -> ApiError:
    model = model_with(handler)

    async def ask() -> object:
        return [chunk async for chunk in model.stream(REQUEST)] if stream else await model.complete(REQUEST)

    with pytest.raises(ApiError) as caught:
        await ask()
    return caught.value


@pytest.mark.parametrize(
    ("upstream", "body", "status", "code"),
    [
        (400, {"error": {"message": "too long", "param": "messages"}}, 400, "language_model_refused"),
        (404, {"object": "error", "message": "no such model"}, 400, "language_model_refused"),
        (422, {"error": {"message": "odd"}}, 400, "language_model_refused"),
        (400, {"error": "odd"}, 502, "language_model_failed"),
        (400, [1], 502, "language_model_failed"),
        (401, {"error": {"message": "the key sk-123 is wrong"}}, 502, "language_model_failed"),
        (500, {"error": {"message": "Traceback: /srv/secret"}}, 502, "language_model_failed"),
        (429, {}, 503, "language_model_unavailable"),
        (503, {}, 503, "language_model_unavailable"),
    ],
)
async def test_upstream_errors(upstream: int, body: Any, status: int, code: str) -> None:
    for stream in (False, True):
        error = await error_of(lambda request: httpx.Response(upstream, json=body), stream=stream)
        assert (error.status, error.code) == (status, code)
        assert "sk-123" not in error.message
        assert "secret" not in error.message


@pytest.mark.parametrize("content", [b"", b"<html>", b"[1]", b"\xff"])
async def test_answers_that_are_not_json_objects_are_502(content: bytes) -> None:
    assert (await error_of(lambda request: httpx.Response(200, content=content))).status == 502


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'data: {"id": 1}\n\n',
        b"data: {broken\n\n",
        b'data: {"error": {"message": "engine died", "code": 500}}\n\n',
    ],
)
async def test_streams_that_end_badly_are_502(content: bytes) -> None:
    assert (await error_of(lambda request: httpx.Response(200, content=content), stream=True)).status == 502


async def test_silence_is_504_and_refusal_is_503() -> None:
    def silent(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    def absent(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("", request=request)

    assert (await error_of(silent)).status == 504
    assert (await error_of(absent)).status == 503


async def test_a_stale_connection_is_tried_once_more() -> None:
    calls = 0

    def stale(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise httpx.RemoteProtocolError("Server disconnected", request=request)
        return httpx.Response(200, json={"choices": []})

    assert (await model_with(stale).complete(REQUEST))["model"] == "ours"
    assert calls == 2

    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("", request=request)

    assert (await error_of(dead)).status == 502


async def test_request_id_and_model_name_are_forwarded() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "found"}]})
        return httpx.Response(200, json={"choices": []})

    model = model_with(answer)
    model._model = None
    await model.complete(REQUEST)
    await model.complete(REQUEST)
    assert [request.url.path for request in seen] == ["/v1/models", *["/v1/chat/completions"] * 2]
    assert seen[-1].headers["x-request-id"] == "req-1"
    assert json.loads(seen[-1].content)["model"] == "found"


def test_payload_format() -> None:
    plain = {"image_embeds": np.zeros((2, 3), np.float32)}
    assert isinstance(image_part(plain)["image_embeds"], str)
    with_grid = image_part({**plain, "image_grid_thw": np.array([1, 2, 4])})
    assert with_grid["image_embeds"].keys() == {"image_embeds", "image_grid_thw"}
    body = {"model": "ours", "messages": [{"role": "user", "content": [{"type": IMAGE_PART, "index": 0}]}], "n": 3}
    sent = vllm_body(ChatRequest(body, [plain], "req-1"), "theirs")
    assert sent["messages"][0]["content"] == [image_part(plain)]
    assert (sent["model"], sent["n"]) == ("theirs", 3)
    assert body["messages"][0]["content"] == [{"type": IMAGE_PART, "index": 0}]
