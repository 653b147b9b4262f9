"""The gateway as operators run it: a process of its own, started with the command."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class GatewayProcess:
    """A running gateway and the file that its log goes to."""

    url: str
    log: Path


@contextmanager
def gateway_process(log: Path, *arguments: str, **environment: str) -> Iterator[GatewayProcess]:
    """Starts ``fs-serve serve`` on a free port of 127.0.0.1; stops it in the end, which must go well."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "serve", "--port", "0", *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if address := re.search(r"listens on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise RuntimeError(f"the gateway ended early: {log.read_text()}")
        yield GatewayProcess(address.group(1), log)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        process.stdout.close()
    assert status == 0, log.read_text()
