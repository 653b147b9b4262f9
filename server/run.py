"""Runs the gateway under uvicorn, and says where it is and how to use it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import structlog
import uvicorn

from fs_runtime.encoders import CheckpointError
from fs_runtime.reference import example_images
from server.app import create_app
from server.drain import Drain
from server.environment import CLIENT_KEY_VARIABLE
from server.http_protocol import HttpProtocol
from server.log_output import STANDARD_ERROR, LogOutput
from server.model_settings import OF_ONE_CHECKPOINT
from server.models.file import read_models
from server.models.loading import LoadedModel, load_model
from server.settings import Settings
from server.tracing import TracingError, add_trace_ids, configure_tracing, send_what_is_left

log = structlog.get_logger("server")

_STANDARD_OUTPUT = 1
_TIME_TO_ASK = 1.0  # seconds after the last answer in which a connection must have sent another request
_TIME_FOR_LAST_WORDS = 5  # seconds for the errors that end what was not finished in time


def configure_logging(settings: Settings) -> None:
    """JSON lines on standard error, the request id in each; readable lines on a terminal."""
    level = getattr(logging, settings.log_level.upper())
    renderer = structlog.dev.ConsoleRenderer() if os.isatty(STANDARD_ERROR) else structlog.processors.JSONRenderer()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        add_trace_ids,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = LogOutput()
    processors: list[structlog.types.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        renderer,
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=processors))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # httpx writes a line for each upstream call; below it headers, keys among them, and Pillow the contents of files.
    for name in ("httpx", "httpcore", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _adopt_transformers()
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # the access middleware logs, with the request id


def _adopt_transformers() -> None:
    """Its lines become ours. Else it writes them as they are, through a handler of its own."""
    from transformers.utils import logging as transformers_logging  # not above: it is slow, and help should be quick

    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    # It warns of prompts beyond the context, which are refused before the model sees them.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)


class _Server(uvicorn.Server):
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
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self.servers:
            port = self.servers[0].sockets[0].getsockname()[1]
            # That nobody can read it is no reason not to serve. Python's own buffer would fail again at the end.
            with suppress(OSError):
                os.write(_STANDARD_OUTPUT, greeting(self._settings, self._models, port).encode())

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
        loop.call_later(lead + self._settings.drain_timeout, self._drain.finish)

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
        while self.server_state.connections and not self._drain.over:
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


def greeting(settings: Settings, models: list[str], port: int) -> str:
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


def warn_if_exposed(settings: Settings) -> None:
    """Says so where anybody who reaches the port may use the server."""
    if settings.api_keys or settings.access_file or _is_loopback(settings.host):
        return
    structlog.get_logger("server").warning(
        "everyone who reaches this address may use the server: set access_file or api_keys, or listen on 127.0.0.1",
        host=settings.host,
    )


def warn_of_client_key(settings: Settings) -> None:
    """Says so where the key of a client is set and no key that the gateway would accept."""
    if CLIENT_KEY_VARIABLE in os.environ and not settings.api_keys and settings.access_file is None:
        log.warning(f"{CLIENT_KEY_VARIABLE} is what clients send, and protects nothing; set api_keys (FS_API_KEYS)")


def warn_of_unused(settings: Settings) -> None:
    """Names settings of the one model that there is not where a file names several."""
    unused = [name for name in OF_ONE_CHECKPOINT if name in settings.model_fields_set]
    if settings.models_file is not None and unused:
        log.warning("models_file names the models and what belongs to each; these settings are not used", unused=unused)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def configured_models(settings: Settings) -> dict[str, Settings]:
    """Settings of each model by its name: those of the models file, or the one that the settings name themselves."""
    if settings.models_file is None:
        return {settings.model_name: settings}
    return read_models(settings.models_file, settings)


def run(settings: Settings) -> int:
    """Serves until it is told to stop. Returns the process's exit status."""
    configure_logging(settings)
    warn_if_exposed(settings)
    warn_of_client_key(settings)
    warn_of_unused(settings)
    loaded: list[LoadedModel] = []
    try:
        configure_tracing()
        loaded.extend(map(load_model, configured_models(settings).values()))  # one that fails leaves those before it
        app = create_app(settings, loaded)
    except TracingError as error:
        return _refuse("cannot send traces", error, loaded)
    except CheckpointError as error:
        return _refuse("cannot load the model", error, loaded)
    except (OSError, ValueError) as error:
        return _refuse("cannot start", error, loaded)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=HttpProtocol,
        ws="none",  # uvicorn would serve an upgrade past the middleware, and log its path with the query
        log_config=None,
        server_header=False,
        timeout_keep_alive=settings.client_idle_timeout,
        timeout_graceful_shutdown=_TIME_FOR_LAST_WORDS,
    )
    server = _Server(config, settings, [model.settings.model_name for model in loaded], app.state.drain)
    server.run()
    send_what_is_left()
    return 0 if server.started else 3


def _refuse(what: str, error: Exception, loaded: list[LoadedModel]) -> int:
    print(f"{what}: {error}", file=sys.stderr)
    for model in loaded:
        model.close()
    return 2
