"""Graceful shutdown: lets requests in flight finish, and ends the rest with an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.concurrency import TimeoutGroup
from server.errors import ApiError


class Drain:
    """State of a graceful shutdown: the gateway first reports not ready but serves on; later it ends what is left.

    Attributes:
        begun: Whether the shutdown has begun; readiness is then off.
        expired: Whether the time for requests in flight is over.
    """

    def __init__(self) -> None:
        self.begun = False
        self.expired = False
        self._timeouts = TimeoutGroup()

    def begin(self) -> None:
        """Begins the shutdown."""
        self.begun = True

    def expire(self) -> None:
        """Ends every block inside :meth:`deadline`: the time is over."""
        self.expired = True
        self._timeouts.expire()

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Ends the block when the shutdown's time is over; do not yield inside it.

        Raises:
            ApiError: 503, the gateway is shutting down.
        """
        if self.expired:
            raise self._shutting_down()
        try:
            async with self._timeouts.timeout_at():
                yield
        except TimeoutError:
            if self.expired:
                raise self._shutting_down() from None
            raise

    @staticmethod
    def _shutting_down() -> ApiError:
        return ApiError(
            503,
            "the server is shutting down and has no time left for this request; try again",
            code="shutting_down",
            headers={"retry-after": "1"},
        )


class DrainMiddleware:
    """Sends ``Connection: close`` during shutdown, so that clients reconnect, perhaps to another replica."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self.drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def send_and_close(message: Message) -> None:
            if self.drain.begun and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        await self.app(scope, receive, send_and_close if scope["type"] == "http" else send)
