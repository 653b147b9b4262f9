"""Server-sent events for clients that may read slowly or disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack

import structlog
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

log = structlog.get_logger("server.stream")


class EventStream(StreamingResponse):
    """Sends events as fast as the client reads, and always closes ``events`` at the end.

    Args:
        events: Encoded events.
        write_timeout: Seconds that a write may block before the client is disconnected.
        resources: Closed when the stream ends.
    """

    def __init__(self, events: AsyncGenerator[str, None], write_timeout: float, resources: ExitStack) -> None:
        super().__init__(
            events,
            media_type="text/event-stream",
            headers={"cache-control": "no-cache", "x-accel-buffering": "no"},
        )
        self._events = events
        self._write_timeout = write_timeout
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self._write_timeout):
                await send(message)

        with self._resources:
            try:
                await super().__call__(scope, receive, send_in_time)
            except TimeoutError:
                # Returning with the answer incomplete makes the server close the connection.
                log.warning("client cut off: it took nothing of its stream in time")
            finally:
                await self._events.aclose()
