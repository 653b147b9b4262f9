"""uvicorn's server with a startup message and graceful shutdown."""

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
_QUIET_SECONDS = 1.0  # connections close when no request has come for this long


class GatewayServer(uvicorn.Server):
    """uvicorn's server, which prints a message when it listens, and shuts down without losing requests.

    At SIGTERM it first reports not ready and still accepts connections for ``drain_lead`` seconds; at SIGINT (Ctrl-C)
    it skips this step. Then it stops listening, and requests in flight have ``drain_timeout`` seconds before they get
    an error. Idle connections stay open for a moment, since a client may just be sending a request on one. A second
    signal ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, models: list[str], drain: Drain) -> None:
        super().__init__(config)
        self._settings = settings
        self._models = models
        self._drain = drain
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finishing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts listening, and prints the startup message."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self.servers:
            port = self.servers[0].sockets[0].getsockname()[1]
            # Serve even if standard output is closed. os.write, since Python's buffer would raise again at exit.
            with suppress(OSError):
                os.write(_STANDARD_OUTPUT, startup_message(self._settings, self._models, port).encode())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT: the first begins the shutdown, the second exits."""
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
        """Stops listening, serves open connections until they are quiet, then lets uvicorn exit in any case."""
        try:
            for connection in self._close_listeners():
                # a client that has disconnected must not affect the others
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
            with suppress(OSError):  # the process may have reached its limit of open files
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
            elif time.monotonic() - quiet_since >= _QUIET_SECONDS:
                break
            await asyncio.sleep(0.05)

    def _protocol(self) -> asyncio.Protocol:
        """Makes the protocol of a connection, as uvicorn does."""
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol


def _accept_waiting(queue: socket.socket, limit: int) -> list[socket.socket]:
    """Accepts the connections in the backlog, which closing the listener would reset.

    Args:
        queue: A listening socket; closed afterwards.
        limit: Size of the backlog; connections that arrive later must not delay the shutdown.
    """
    accepted: list[socket.socket] = []
    queue.setblocking(False)
    with queue, suppress(OSError):  # the backlog is empty, or the limit of open files is reached
        while len(accepted) < limit:
            accepted.append(queue.accept()[0])
    for connection in accepted:
        connection.setblocking(False)
    return accepted


def startup_message(settings: Settings, models: list[str], port: int) -> str:
    """The message at startup: the address, and an example request with curl."""
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
