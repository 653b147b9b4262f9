"""uvicorn's server, which greets when it listens and stops without losing requests."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import structlog
import uvicorn

from fs_runtime.reference import example_images
from server.http.drain import Drain
from server.settings.gateway import Settings

log = structlog.get_logger("server")

_STANDARD_OUTPUT = 1
_TIME_TO_ASK = 1.0  # seconds after the last answer in which a connection must have sent another request


class GatewayServer(uvicorn.Server):
    """uvicorn's server, which greets once it listens, and stops without losing requests.

    At SIGTERM readiness goes down first, and requests are still taken for ``drain_lead`` seconds; at SIGINT, from a
    person at a terminal, they are not. Then it stops listening, what is under way has ``drain_timeout`` seconds, and
    what is left gets an error. A connection stays open for a moment after its last answer, since a client that does
    not know yet may be asking on it. A second signal ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, models: list[str], drain: Drain) -> None:
        super().__init__(config)
        self._settings = settings
        self._models = models
        self._drain = drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finishing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn before it serves."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self.servers:
            port = self.servers[0].sockets[0].getsockname()[1]
            # That nobody can read it is no reason not to serve. Python's own buffer would fail again at the end.
            with suppress(OSError):
                os.write(_STANDARD_OUTPUT, startup_message(self._settings, self._models, port).encode())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by Python between two instructions of the main thread."""
        if self._drain.begun or self._loop is None:
            os._exit(128 + sig)
        self._drain.begin()
        lead = self._settings.drain_lead if sig == signal.SIGTERM else 0.0
        self._loop.call_soon_threadsafe(self._stop_after, lead)

    def _stop_after(self, lead: float) -> None:
        log.info("stopping", lead_seconds=lead, seconds_to_finish=self._settings.drain_timeout)
        loop = asyncio.get_running_loop()
        loop.call_later(lead, self._stop_listening)
        loop.call_later(lead + self._settings.drain_timeout, self._drain.expire)

    def _stop_listening(self) -> None:
        self._finishing = asyncio.create_task(self._finish())

    async def _finish(self) -> None:
        """Serves who has connected, until nobody has asked for a moment; then uvicorn ends, whatever happens here."""
        try:
            for connection in self._close_listeners():
                # One that is gone already is no reason to leave the others.
                with suppress(OSError):
                    await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
            await self._wait_until_quiet()
        finally:
            self.should_exit = True

    def _close_listeners(self) -> list[socket.socket]:
        """Stops listening. Returns the connections that waited to be accepted."""
        waiting: list[socket.socket] = []
        for server in self.servers:
            queues: list[socket.socket] = []
            with suppress(OSError):  # the process may have as many files as it can have
                queues += [socket.socket(fileno=os.dup(listener.fileno())) for listener in server.sockets]
            server.close()
            for queue in queues:
                waiting += _accept_waiting(queue, self.config.backlog)
        return waiting

    async def _wait_until_quiet(self) -> None:
        quiet_since = time.monotonic()
        while self.server_state.connections and not self._drain.expired:
            if self.server_state.tasks:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since >= _TIME_TO_ASK:
                break
            await asyncio.sleep(0.05)

    def _protocol(self) -> asyncio.Protocol:
        """What uvicorn makes of a connection."""
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _accept_waiting(queue: socket.socket, most: int) -> list[socket.socket]:
    """The connections that the system has accepted and uvicorn has not: closing the listener would reset them.

    Args:
        queue: A listening socket; closed afterwards.
        most: How many can have waited; those that come meanwhile must not hold up the end.
    """
    accepted: list[socket.socket] = []
    queue.setblocking(False)
    with queue, suppress(OSError):  # none is left, or no further file can be opened
        while len(accepted) < most:
            accepted.append(queue.accept()[0])
    for connection in accepted:
        connection.setblocking(False)
    return accepted


def startup_message(settings: Settings, models: list[str], port: int) -> str:
    """The address, and a request to paste."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 (a comparison)
    address = f"http://{host}:{port}"
    key = '\n  -H "Authorization: Bearer $FS_API_KEY" \\' if settings.api_keys or settings.access_file else ""
    return f"""
FS-Serve listens on {address} and serves {", ".join(map(repr, models))}. Try:

curl -s {address}/v1/chat/completions -H 'Content-Type: application/json' \\{key}
  -d '{{"model": "{models[0]}", "temperature": 0, "messages": [{{"role": "user", "content": [
        {{"type": "text", "text": "Describe the image."}},
        {{"type": "image_url", "image_url": {{"url": "data:image/png;base64,'"$(
          base64 < {example_images()["red-circle"]} | tr -d '\\n')"'"}}}}]}}]}}'
"""
