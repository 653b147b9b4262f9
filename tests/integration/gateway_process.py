"""The gateway as operators run it: a process of its own, started with the command, whose log is a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .serve_process import serving


@dataclass(frozen=True)
class GatewayProcess:
    """A running gateway and the file that its log goes to."""

    url: str
    log: Path


@contextmanager
def gateway_process(log: Path, *arguments: str, **environment: str) -> Iterator[GatewayProcess]:
    """Starts ``fs-serve serve`` on a free port of 127.0.0.1; stops it in the end, which must go well."""
    with serving(*arguments, stderr=log, **environment) as server:
        yield GatewayProcess(server.url, log)
        assert server.stop() == 0, log.read_text()
