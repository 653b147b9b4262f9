"""Configures logging: format, level, output and third-party loggers."""

from __future__ import annotations

import logging
import os

import structlog

from server.observability.log_output import STANDARD_ERROR, LogOutput
from server.observability.tracing import add_trace_ids
from server.settings.gateway import Settings


def configure_logging(settings: Settings) -> None:
    """Logs JSON lines with request ids to standard error, or readable lines on a terminal."""
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
    # At lower levels httpx logs each upstream call, httpcore headers with keys, and Pillow the contents of files.
    for name in ("httpx", "httpcore", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)
    _route_transformers_logs()
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # AccessLogMiddleware logs requests, with the request id


def _route_transformers_logs() -> None:
    """Routes transformers' log records through our handler; by default it has its own."""
    from transformers.utils import logging as transformers_logging  # a slow import, which --help does not need

    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    # It warns of prompts beyond the context, which are refused before the model sees them.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
