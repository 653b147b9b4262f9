"""Calls an ASGI application in this process, and hands on what it sends as it comes; httpx's own waits for the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

import httpx
from starlette.types import ASGIApp, Message


class StreamingTransport(httpx.AsyncBaseTransport):
    """Transport of a client of one application.

    Args:
        app: The application, whose lifespan somebody else manages.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Runs the application until its response has begun; what it raises before is raised."""
        body = await request.aread()
        exchange = _Exchange(body)
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port),
            "client": ("127.0.0.1", 0),
            "root_path": "",
        }
        exchange.run(self._app(scope, exchange.receive, exchange.send))
        start = await exchange.next_message()
        if start is None:
            raise httpx.RemoteProtocolError("the application ended without a response")
        return httpx.Response(start["status"], headers=start["headers"], stream=exchange)


class _Exchange(httpx.AsyncByteStream):
    """One request on its way to the application, and the body of the response on its way back."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._sent: asyncio.Queue[Message | None] = asyncio.Queue()
        self._closed = asyncio.Event()
        self._task: asyncio.Future[None] | None = None

    def run(self, work: Awaitable[None]) -> None:
        """Starts the application."""
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(lambda _: self._sent.put_nowait(None))

    async def receive(self) -> Message:
        """The request's body, and then, once the reader has left, that it did."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Takes what the application sends."""
        self._sent.put_nowait(message)

    async def next_message(self) -> Message | None:
        """What it sends next; None at its end, which raises what it raised."""
        message = await self._sent.get()
        if message is None and self._task is not None:
            await self._task
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the response's body."""
        while (message := await self.next_message()) is not None:
            yield message.get("body", b"")

    async def aclose(self) -> None:
        """Ends the application's work on the request."""
        self._closed.set()
        if self._task is not None:
            self._task.cancel()
