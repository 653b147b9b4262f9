"""Runs the gateway under uvicorn, and says where it is and how to use it."""

from __future__ import annotations

import logging
import signal
import socket
import sys

import structlog
import uvicorn

from fs_runtime.encoders import CheckpointError
from fs_runtime.reference import example_images
from server.app import build_engine, create_app
from server.settings import Settings


def configure_logging(settings: Settings) -> None:
    """JSON lines on standard error, the request id in each; readable lines on a terminal."""
    level = getattr(logging, settings.log_level.upper())
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
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
    handler = logging.StreamHandler()
    processors: list[structlog.types.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        renderer,
    ]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=processors))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line per upstream call is noise
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # the access middleware logs, with the request id


class _Server(uvicorn.Server):
    """uvicorn's server, which greets once it listens."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.servers:
            port = self.servers[0].sockets[0].getsockname()[1]
            print(greeting(self._settings, port), flush=True)


def greeting(settings: Settings, port: int) -> str:
    """The address, and a request to paste."""
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 (a comparison)
    address = f"http://{host}:{port}"
    key = '\n  -H "Authorization: Bearer $FS_API_KEY" \\' if settings.api_keys else ""
    return f"""
FS-Serve listens on {address} and serves {settings.model_name!r}. Try:

curl -s {address}/v1/chat/completions -H 'Content-Type: application/json' \\{key}
  -d '{{"model": "{settings.model_name}", "temperature": 0, "messages": [{{"role": "user", "content": [
        {{"type": "text", "text": "Describe the image."}},
        {{"type": "image_url", "image_url": {{"url": "data:image/png;base64,'"$(
          base64 < {example_images()["red-circle"]} | tr -d '\\n')"'"}}}}]}}]}}'
"""


def run(settings: Settings) -> int:
    """Serves until it is told to stop. Returns the process's exit status."""
    configure_logging(settings)
    try:
        engine = build_engine(settings)
    except CheckpointError as error:
        print(f"cannot load the model: {error}", file=sys.stderr)
        return 2
    try:
        config = uvicorn.Config(
            create_app(settings, engine),
            host=settings.host,
            port=settings.port,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=30,
        )
        server = _Server(config, settings)
        # uvicorn stops gracefully on these signals and raises them again when it is done; by then they have had
        # their effect, and what is left is to close the engine and to leave with status 0.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        server.run()
    finally:
        engine.close()
    return 0 if server.started else 3
