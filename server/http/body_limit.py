"""Limits of request bodies: size of one, total size of all in flight, and time, counted as bytes arrive.

A client whose body is refused still gets the error response.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError

# If the connection closed at once, a client that is still sending would never see the response. So the rest of the
# body is read and dropped, up to these limits, before the connection closes.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 16 * 2**20


class BodyLimitMiddleware:
    """Answers 413 to a body that is too large, 408 to a slow one, and 429 if all bodies together are too large.

    A connection is closed if its request body was not read completely.

    Args:
        app: The application inside.
        max_bytes: Largest body, counted as it arrives, with or without a Content-Length.
        seconds: Time limit for receiving a whole body.
        max_total_bytes: Most bytes that the bodies of all unanswered requests may have together.
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
            self.total_bytes -= body.counted

    def too_large(self) -> ApiError:
        """The 413 for a body that is too large."""
        return ApiError(
            413,
            f"the request body has more than {self.max_bytes} bytes; send smaller or fewer images",
            code="request_too_large",
        )

    def too_many(self) -> ApiError:
        """The 429 for a body that would exceed the total."""
        return ApiError(
            429,
            "the bodies of all current requests together are too large for the server; try again later",
            code="overloaded",
            headers={"retry-after": "1"},
        )

    def too_slow(self) -> ApiError:
        """The 408 for a body that took too long."""
        return ApiError(
            408,
            f"the request body did not arrive within {self.seconds:g} s; send it faster, or smaller images",
            code="request_timeout",
        )


class _Body:
    """Receives the body of one request, and closes the connection if the body was not read completely."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limit: BodyLimitMiddleware) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        headers = Headers(scope=scope)
        self._complete = "transfer-encoding" not in headers and headers.get("content-length", "0") == "0"
        self._read = 0
        self.counted = 0  # bytes of this body in the total
        self._deadline: float | None = None
        self._refused: ApiError | None = None
        self._closing = False

    async def receive(self) -> Message:
        if self._refused is not None:  # nothing more is read after a refusal
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
        self.counted += size
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
            self._complete = True  # the client has disconnected

    async def _drop_rest(self) -> None:
        most = self._read + _LINGER_BYTES
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while not self._complete and self._read < most:
                    self._count(await self._receive())
        except TimeoutError:
            pass
