"""Stopping without losing requests: what is under way when the gateway is told to stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.concurrency import TimeoutGroup
from server.errors import ApiError


class Drain:
    """Two steps: first the gateway says that it stops and goes on serving; in the end what is left gets an error.

    Attributes:
        begun: Whether the gateway has been told to stop; it is then not ready for further clients.
        over: Whether the time to finish is over.
    """

    def __init__(self) -> None:
        self.begun = False
        self.expired = False
        self._timeouts = TimeoutGroup()

    def begin(self) -> None:
        """The gateway has been told to stop."""
        self.begun = True

    def expire(self) -> None:
        """The time is over: everything in :meth:`limit` ends."""
        self.expired = True
        self._timeouts.expire()

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[None]:
        """Ends the block when the time is over; do not yield inside it.

        Raises:
            ApiError: 503, the gateway stops.
        """
        if self.expired:
            raise self._stopping()
        try:
            async with self._timeouts.timeout_at():
                yield
        except TimeoutError:
            if self.expired:
                raise self._stopping() from None
            raise

    @staticmethod
    def _stopping() -> ApiError:
        return ApiError(
            503,
            "the server is shutting down and has no time left for this request; try again",
            code="shutting_down",
            headers={"retry-after": "1"},
        )


class DrainMiddleware:
    """Has clients open a new connection, perhaps to another replica, for whatever they ask next."""

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
