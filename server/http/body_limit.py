"""Limits of request bodies: bytes, of one and of all under way, and time, whatever the headers say.

What is refused comes to an orderly end.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError

# A client that is still sending when it is refused would lose the answer if the connection were cut at once: the rest
# of its body is read and dropped, for this long and up to this much, and then the connection is closed.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 2**20


class BodyLimitMiddleware:
    """Answers 413 to a body with too many bytes, 408 to one that takes too long, and 429 where all have too many.

    A connection whose request body was not read to its end is never used again.

    Args:
        app: The application inside.
        max_bytes: Of the body, counted as it arrives, in chunks or not.
        seconds: From the first byte that is waited for to the last one.
        max_total_bytes: Of the bodies of all requests that are not answered yet, arrived so far.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float, max_total_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds
        self.max_total_bytes = max(max_bytes, max_total_bytes)
        self.total_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = _Body(scope, receive, send, self)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared) > self.max_bytes:
            scope["state"]["error"] = self.too_large()
            await self.too_large().response()(scope, body.receive, body.send)
            return
        try:
            await self.app(scope, body.receive, body.send)
        finally:
            self.total_bytes -= body.kept

    def too_large(self) -> ApiError:
        """The answer to too many bytes."""
        return ApiError(
            413,
            f"the request body has more than {self.max_bytes} bytes; send smaller or fewer images",
            code="request_too_large",
        )

    def too_many(self) -> ApiError:
        """The answer where this body would be one too many."""
        return ApiError(
            429,
            "the requests that the server is answering are as large as it can hold; try again later",
            code="overloaded",
            headers={"retry-after": "1"},
        )

    def too_slow(self) -> ApiError:
        """The answer to too much time."""
        return ApiError(
            408,
            f"the request body did not arrive within {self.seconds:g} s; send it faster, or smaller images",
            code="request_timeout",
        )


class _Body:
    """The body of one request, and what becomes of the connection."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: BodyLimitMiddleware) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        headers = Headers(scope=scope)
        self._complete = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self._read = 0
        self.kept = 0
        self._deadline: float | None = None
        self._refused: ApiError | None = None
        self._closing = False

    async def receive(self) -> Message:
        if self._refused is not None:  # who asks again gets no further
            raise self._refused
        if self._complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._limit.seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            self._refused = self._limit.too_slow()
            raise self._refused from None
        before = self._read
        self._count(message)
        size = self._read - before
        if self._read > self._limit.max_bytes:
            self._refused = self._limit.too_large()
        elif self._limit.total_bytes + size > self._limit.max_total_bytes:
            self._refused = self._limit.too_many()
        if self._refused is not None:
            raise self._refused
        self.kept += size
        self._limit.total_bytes += size
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._closing = not self._complete
            if self._closing:
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        elif message["type"] == "http.response.body" and self._closing and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._drop_rest()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    def _count(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        else:
            self._complete = True  # the client has gone

    async def _drop_rest(self) -> None:
        most = self._read + _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._complete and self._read < most:
                    self._count(await self._receive())
        except TimeoutError:
            pass
