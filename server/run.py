"""Runs the gateway under uvicorn, and says where it is and how to use it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

import structlog
import uvicorn

from fs_runtime.encoders import CheckpointError
from fs_runtime.reference import example_images
from fs_runtime.smoothing import Smoother
from server.app import build_engine, create_app
from server.drain import Drain
from server.log_output import STANDARD_ERROR, LogOutput
from server.settings import Settings
from server.tracing import TracingError, add_trace_ids, configure_tracing

log = structlog.get_logger("server")

_STANDARD_OUTPUT = 1
_TIME_TO_SPEAK = 0.5  # seconds in which a connection just opened must have sent its request
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
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # the access middleware logs, with the request id


class _Server(uvicorn.Server):
    """uvicorn's server, which greets once it listens, and stops without losing requests.

    At SIGTERM readiness goes down first, and requests are still taken for ``drain_lead`` seconds; at SIGINT, from a
    person at a terminal, they are not. Then it stops listening, what is under way has ``drain_timeout`` seconds, and
    what is left gets an error. A second signal ends the process at once.
    """

    def __init__(self, config: uvicorn.Config, settings: Settings, drain: Drain) -> None:
        super().__init__(config)
        self._settings = settings
        self._drain = drain
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started and self.servers:
            port = self.servers[0].sockets[0].getsockname()[1]
            # That nobody can read it is no reason not to serve. Python's own buffer would fail again at the end.
            with suppress(OSError):
                os.write(_STANDARD_OUTPUT, greeting(self._settings, port).encode())

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
        # uvicorn would close all idle connections in the same moment, and with them the requests that arrive on one
        # just opened.
        for server in self.servers:
            server.close()
        asyncio.get_running_loop().call_later(_TIME_TO_SPEAK, self._close_idle_connections)

    def _close_idle_connections(self) -> None:
        self.should_exit = True


def greeting(settings: Settings, port: int) -> str:
    """The address, and a request to paste."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 (a comparison)
    address = f"http://{host}:{port}"
    key = '\n  -H "Authorization: Bearer $FS_API_KEY" \\' if settings.api_keys or settings.access_file else ""
    return f"""
FS-Serve listens on {address} and serves {settings.model_name!r}. Try:

curl -s {address}/v1/chat/completions -H 'Content-Type: application/json' \\{key}
  -d '{{"model": "{settings.model_name}", "temperature": 0, "messages": [{{"role": "user", "content": [
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


def say_what_smooths(settings: Settings, smoother: Smoother) -> None:
    """The purifier, which an operator who chose none may not expect, and a warning where the noise does not suit it."""
    psm, sigma = smoother.psm, smoother.sigma if settings.sigma is None else settings.sigma
    if psm is None or sigma == 0:
        return
    facts = {"psm": psm.name, "sigma": sigma, "trained_from": psm.sigma_low, "trained_to": psm.sigma_high}
    if psm.trained_for(sigma):
        log.info("noisy copies pass a purifier", **facts)
    else:
        log.warning("the purifier was not trained for this sigma: certificates hold, answers may suffer", **facts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run(settings: Settings) -> int:
    """Serves until it is told to stop. Returns the process's exit status."""
    configure_logging(settings)
    warn_if_exposed(settings)
    try:
        configure_tracing()
        engine = build_engine(settings)
        say_what_smooths(settings, engine.smoother)
    except TracingError as error:
        print(f"cannot send traces: {error}", file=sys.stderr)
        return 2
    except CheckpointError as error:
        print(f"cannot load the model: {error}", file=sys.stderr)
        return 2
    try:
        try:
            app = create_app(settings, engine)
        except (OSError, ValueError) as error:
            print(f"cannot start: {error}", file=sys.stderr)
            return 2
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout) + _TIME_FOR_LAST_WORDS,
        )
        server = _Server(config, settings, app.state.drain)
        server.run()
    finally:
        engine.close()
    return 0 if server.started else 3
