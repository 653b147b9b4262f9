"""Faults of vLLM servers that healthy ones cannot be made to show."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from server.errors import ApiError
from server.language_models.base import IMAGE_PART, ChatRequest
from server.language_models.vllm.model import VllmLanguageModel, image_part, vllm_body
from server.language_models.vllm.upstreams import Upstreams
from server.observability.metrics import Metrics
from server.settings.gateway import Settings

REQUEST = ChatRequest({"model": "ours", "messages": [{"role": "user", "content": "x"}]}, [], "req-1")
ANSWER = {"choices": []}
Handler = Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]


def model_with(handler: Handler, metrics: Metrics | None = None, **settings: Any) -> VllmLanguageModel:
    chosen = Settings(**{"vllm_model": "theirs", **settings})
    transport = httpx.MockTransport(handler)  # type: ignore[arg-type]
    metrics = (metrics or Metrics()).models.of_model("ours").upstreams
    return VllmLanguageModel(Upstreams(chosen, metrics, transport=transport), "ours")


async def error_of(handler: Handler, *, stream: bool = False, **settings: Any) -> ApiError:
    model = model_with(handler, **settings)

    async def ask() -> object:
        return [chunk async for chunk in model.stream(REQUEST)] if stream else await model.complete(REQUEST)

    with pytest.raises(ApiError) as caught:
        await ask()
    return caught.value


async def read_until_error(model: VllmLanguageModel) -> tuple[int, ApiError]:
    received = 0
    try:
        async for _ in model.stream(REQUEST):
            received += 1
    except ApiError as error:
        return received, error
    pytest.fail("the stream ended without an error")


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


def silent(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("", request=request)


def absent(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("", request=request)


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.RemoteProtocolError("Server disconnected", request=request)


async def test_silence_is_504_and_refusal_is_503() -> None:
    assert (await error_of(silent)).status == 504
    assert (await error_of(absent)).status == 503


async def test_a_stale_connection_is_tried_once_more() -> None:
    calls = 0

    def stale(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return broken(request) if calls % 2 else httpx.Response(200, json=ANSWER)

    assert (await model_with(stale).complete(REQUEST))["model"] == "ours"
    assert calls == 2
    assert (await error_of(broken)).status == 502


# --- several servers --------------------------------------------------------------------------------------------------

TWO = {"vllm_urls": "http://a:1,http://b:2/"}


def first_fails(fault: Handler, asked: list[str]) -> Handler:
    """Server a has the fault, server b is well."""

    def handler(request: httpx.Request) -> httpx.Response | Awaitable[httpx.Response]:
        if request.url.path == "/v1/chat/completions":
            asked.append(request.url.host)
        return fault(request) if request.url.host == "a" else httpx.Response(200, json=ANSWER)

    return handler


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (silent, "timed_out"),
        (absent, "unreachable"),
        (broken, "broken_off"),
        (lambda request: httpx.Response(503), "busy"),
        (lambda request: httpx.Response(500, json={"error": {"message": "EngineDeadError"}}), "failed"),
        (lambda request: httpx.Response(200, content=b'{"choices": ['), "failed"),
    ],
)
async def test_another_server_answers_before_the_first_byte(fault: Handler, reason: str) -> None:
    asked: list[str] = []
    metrics = Metrics()
    model = model_with(first_fails(fault, asked), metrics, **TWO)
    assert (await model.complete(REQUEST))["model"] == "ours"
    assert asked == ["a", "b"]
    value = metrics.registry.get_sample_value
    assert value("fs_upstream_retries_total", {"model": "ours", "reason": reason}) == 1
    assert value("fs_upstream_requests_total", {"model": "ours", "server": "a:1", "outcome": reason}) == 1
    assert value("fs_upstream_requests_total", {"model": "ours", "server": "b:2", "outcome": "answered"}) == 1
    assert value("fs_upstream_in_flight", {"model": "ours", "server": "a:1"}) == 0
    assert value("fs_upstream_healthy", {"model": "ours", "server": "a:1"}) == (0 if reason == "unreachable" else 1)


async def test_what_the_request_did_wrong_is_not_repeated_elsewhere() -> None:
    asked: list[str] = []
    bad = httpx.Response(400, json={"error": {"message": "too long"}})
    with pytest.raises(ApiError) as caught:
        await model_with(first_fails(lambda request: bad, asked), **TWO).complete(REQUEST)
    assert (caught.value.status, asked) == (400, ["a"])


def sse(*events: str) -> bytes:
    return "".join(f"data: {event}\n\n" for event in events).encode()


async def test_a_stream_is_repeated_before_its_first_event_and_never_after() -> None:
    asked: list[str] = []
    begun = '{"choices": [{"index": 0}]}'

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        whole = sse(begun, begun, "[DONE]")
        cut = {"a": sse('{"error": {"message": "engine died", "code": 500}}'), "b": whole}
        return httpx.Response(200, content=cut[request.url.host])

    chunks = [chunk async for chunk in model_with(handler, **TWO).stream(REQUEST)]
    assert (len(chunks), asked) == (2, ["a", "b"])

    asked.clear()
    model = model_with(lambda r: (asked.append(r.url.host), httpx.Response(200, content=sse(begun)))[1], **TWO)
    received, error = await read_until_error(model)
    assert (received, error.code, len(asked)) == (1, "language_model_broken_off", 1)


async def test_a_stream_that_ends_before_it_begins_is_repeated_elsewhere() -> None:
    asked: list[str] = []
    whole = {"a": sse("[DONE]"), "b": sse('{"choices": [{"index": 0}]}', "[DONE]")}

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(200, content=whole[request.url.host])

    chunks = [chunk async for chunk in model_with(handler, **TWO).stream(REQUEST)]
    assert (len(chunks), asked) == (1, ["a", "b"])
    error = await error_of(lambda request: httpx.Response(200, content=sse("[DONE]")), stream=True)
    assert (error.status, error.code) == (502, "language_model_broken_off")


async def test_a_request_error_inside_a_stream_is_the_clients() -> None:
    content = sse('{"error": {"message": "bad grammar", "code": 400}}')
    error = await error_of(lambda request: httpx.Response(200, content=content), stream=True)
    assert (error.status, error.code) == (400, "language_model_refused")


async def test_a_server_that_fails_its_health_check_loses_what_hangs_there() -> None:
    """Server a takes a request and falls silent; when its health checks fail, server b gets the request."""
    hung = asyncio.Event()
    ill = False

    async def handler(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/health":
            return httpx.Response(503 if ill and request.url.host == "a" else 200)
        if request.url.host == "a":
            hung.set()
            await asyncio.sleep(60)
        return httpx.Response(200, json=ANSWER)

    model = model_with(handler, **TWO, vllm_health_interval=0.01)
    await model.start()
    answer = asyncio.create_task(model.complete(REQUEST))
    await hung.wait()
    assert not answer.done()
    ill = True
    assert (await asyncio.wait_for(answer, 5))["model"] == "ours"
    await model.close()


async def test_health_goes_and_comes_back() -> None:
    well = {"a": False, "b": True}

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200 if well[request.url.host] else 503, json=ANSWER)

    model = model_with(handler, **TWO, vllm_health_interval=60)
    await model.start()
    assert await model.ready()
    well["b"] = False
    for _ in range(2):  # the second one finds nobody to ask
        with pytest.raises(ApiError) as caught:
            await model.complete(REQUEST)
        assert (caught.value.status, caught.value.code) == (503, "language_model_unavailable")
        await asyncio.sleep(0.05)
    assert not await model.ready()
    with pytest.raises(ApiError):
        await model.admit()
    well["a"] = True
    await model.admit()  # asks again at once; nobody waits for the next round
    assert (await model.complete(REQUEST))["model"] == "ours"
    await model.close()


async def test_busy_servers_are_answered_429() -> None:
    go = asyncio.Event()

    async def handler(request: httpx.Request) -> httpx.Response:
        await go.wait()
        return httpx.Response(200, json=ANSWER)

    metrics = Metrics()
    model = model_with(handler, metrics, vllm_max_in_flight=1, max_waiting=1, vllm_max_wait=0.2)
    answers = [asyncio.create_task(model.complete(REQUEST)) for _ in range(3)]
    done, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    with pytest.raises(ApiError) as caught:
        await model.admit()
    assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "1")
    await asyncio.wait(answers, timeout=0.4)
    go.set()
    results = await asyncio.gather(*answers, return_exceptions=True)
    assert sum(isinstance(result, dict) for result in results) == 1
    assert {result.code for result in results if isinstance(result, ApiError)} == {"overloaded"}
    for reason in ("queue_full", "no_place"):
        assert metrics.registry.get_sample_value("fs_upstream_sheds_total", {"model": "ours", "reason": reason}) >= 1  # type: ignore[operator]


class Drip(httpx.AsyncByteStream):
    """Sends one event, and then one more after each pause."""

    def __init__(self, pauses: list[float]) -> None:
        self.pauses = pauses

    async def __aiter__(self) -> Any:
        yield sse("{}")
        for pause in self.pauses:
            await asyncio.sleep(pause)
            yield sse("{}")


@pytest.mark.parametrize(
    ("limits", "pauses", "events", "words"),
    [
        ({"vllm_next_token_timeout": 0.05}, [0, 0, 5], 3, "in the middle"),
        ({"vllm_total_timeout": 0.1}, [0.03] * 100, None, "0.1 s"),
    ],
)
async def test_phases_of_a_stream(limits: Any, pauses: list[float], events: int | None, words: str) -> None:
    model = model_with(lambda request: httpx.Response(200, stream=Drip(pauses)), **limits)
    received, error = await read_until_error(model)
    assert (error.status, error.code) == (504, "language_model_timeout")
    assert words in error.message
    assert received == events or (events is None and 1 < received < 10)


async def test_first_token_has_a_limit_of_its_own_and_a_whole_answer_has_not() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.1)
        return httpx.Response(200, json=ANSWER)

    model = model_with(slow, vllm_first_token_timeout=0.02)
    assert await model.complete(REQUEST)
    with pytest.raises(ApiError, match="no token in time"):
        await anext(model.stream(REQUEST))


async def test_leaving_gives_the_place_back() -> None:
    metrics = Metrics()
    model = model_with(lambda request: httpx.Response(200, stream=Drip([60])), metrics)
    chunks = model.stream(REQUEST)
    await anext(chunks)

    def in_flight() -> float | None:
        return metrics.registry.get_sample_value("fs_upstream_in_flight", {"model": "ours", "server": "127.0.0.1:8001"})

    assert in_flight() == 1
    await chunks.aclose()  # type: ignore[attr-defined]
    assert in_flight() == 0
    waiting = asyncio.create_task(model.complete(REQUEST))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert in_flight() == 0
    labels = {"model": "ours", "server": "127.0.0.1:8001", "outcome": "withdrawn"}
    assert metrics.registry.get_sample_value("fs_upstream_requests_total", labels) == 2


async def test_request_id_and_model_name_are_forwarded() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "found"}]})
        return httpx.Response(200, json=ANSWER)

    model = model_with(answer, vllm_model=None)
    await model.complete(REQUEST)
    await model.complete(REQUEST)
    assert [request.url.path for request in seen] == ["/v1/models", *["/v1/chat/completions"] * 2]
    assert seen[-1].headers["x-request-id"] == "req-1"
    assert json.loads(seen[-1].content)["model"] == "found"


@pytest.mark.parametrize("models", [b"", b"[]", b'{"data": []}'])
async def test_a_server_that_lists_no_model_is_502(models: bytes) -> None:
    error = await error_of(lambda request: httpx.Response(200, content=models), vllm_model=None)
    assert error.status == 502


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


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
async def test_a_text_may_hold_what_ends_lines_elsewhere(size: int, end: str) -> None:
    """vLLM writes such characters as they are; pieces may end within one, and within the end of a line."""
    texts = ["one\u2028two", "\u2029", "\x85", "é\U0001f600"]
    events = [*(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "[DONE]"]
    raw = "".join(f"data: {event}{end}{end}" for event in events).encode()

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(raw), size):
            yield raw[start : start + size]

    model = model_with(lambda request: httpx.Response(200, content=pieces()))
    assert [chunk["text"] async for chunk in model.stream(REQUEST)] == texts
