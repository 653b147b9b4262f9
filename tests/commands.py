"""The command line in this process: its table of commands, and a call of its entry point.

The groups of the table are the module's own: added again, each command would be there once more.
"""

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any
from unittest.mock import patch

import structlog

from server.cli.commands import add_all_commands, app, main

__all__ = ["app", "kept_logging", "run_here"]

add_all_commands()


@contextmanager
def kept_logging() -> Iterator[None]:
    """Puts the process's logging back as it was: tests that come later read what is logged by default."""
    root, configured, config = logging.getLogger(), structlog.is_configured(), structlog.get_config()
    handlers, level, configure = root.handlers, root.level, structlog.configure

    def configure_without_cache(**options: Any) -> None:
        """Loggers that were cached would keep what is configured meanwhile."""
        configure(**options | {"cache_logger_on_first_use": False})

    try:
        with patch.object(structlog, "configure", configure_without_cache):
            yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        structlog.reset_defaults()
        if configured:
            structlog.configure(**config)


def run_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``fs-serve`` to its end in this process, which spares the imports of a new one.

    Not for commands that keep something of the process: ``serve`` its signals, ``ask`` and ``bench serve`` its log.
    """
    output, errors = io.StringIO(), io.StringIO()
    code = 0
    with (
        patch.dict(os.environ, {"COLUMNS": "200", "TERM": "dumb"}),
        patch.object(sys, "argv", ["fs-serve", *arguments]),
        redirect_stdout(output),
        redirect_stderr(errors),
        kept_logging(),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess(["fs-serve", *arguments], code, output.getvalue(), errors.getvalue())
