"""Answers of an application in this process arrive as they are sent."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.cli.asgi_transport import StreamingTransport


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=StreamingTransport(app), base_url="http://here")


async def test_a_request_is_answered() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        text = f"{request.method} {request.url.path}?{request.url.query} {(await request.body()).decode()}"
        await PlainTextResponse(text, 201, {"x-sent": request.headers["x-mine"]})(scope, receive, send)

    async with client_of(echo) as client:
        reply = await client.post("/a%20b?c=d", content=b"hello", headers={"X-Mine": "m"})
    assert (reply.status_code, reply.text, reply.headers["x-sent"]) == (201, "POST /a b?c=d hello", "m")


async def test_a_stream_is_read_before_it_ends() -> None:
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[str]:
        yield "first\n"
        await asyncio.wait_for(go_on.wait(), 10)
        yield "second\n"

    async with client_of(StreamingResponse(parts())) as client, client.stream("GET", "/") as reply:
        lines = reply.aiter_lines()
        assert await anext(lines) == "first"
        go_on.set()
        assert await anext(lines) == "second"
        assert await anext(lines, None) is None


async def test_who_leaves_ends_the_work() -> None:
    ended = asyncio.Event()

    async def forever() -> AsyncIterator[str]:
        try:
            while True:
                yield "again\n"
                await asyncio.sleep(0.001)
        finally:
            ended.set()

    async with client_of(StreamingResponse(forever())) as client, client.stream("GET", "/") as reply:
        await anext(reply.aiter_lines())
    await asyncio.wait_for(ended.wait(), 10)


async def test_what_the_application_raises_is_raised() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    async with client_of(broken) as client:
        with pytest.raises(ZeroDivisionError):
            await client.get("/")
    async with client_of(silent) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/")
