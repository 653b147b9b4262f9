"""`fs-serve serve` as a process of its own: for signals, exit status, and what happens to its standard error."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

from tests.child_process import WITH_PARENT
from tests.child_process import environment as inherited
from tests.forked_process import ForkedProcess, forks_with_libraries


@dataclass
class ServeProcess:
    """A running gateway."""

    url: str
    process: subprocess.Popen[str] | ForkedProcess

    def post(self, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, **{"timeout": 120, **options})

    def stop(self, limit: float = 60) -> int:
        """Sends SIGTERM and returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(limit)


@contextmanager
def serving(
    *arguments: str, stderr: Path | IO[bytes] | int, fork: bool = True, shell: str = "", **environment: str
) -> Iterator[ServeProcess]:
    """Starts the gateway on a free port and waits until it listens.

    Args:
        arguments: Flags.
        stderr: Where standard error goes; a descriptor or a constant of ``subprocess`` only without ``fork``.
        fork: Start it sooner, from a process that has imported the largest libraries, where one thread computes.
        shell: Redirections in the words of a shell; only without ``fork``.
        environment: Further variables.
    """
    arguments = ("serve", "--port", "0", *arguments)
    variables = inherited() | {"OMP_NUM_THREADS": "1"} | environment
    with ExitStack() as stack:
        errors = stack.enter_context(stderr.open("wb")) if isinstance(stderr, Path) else stderr
        reader, writer = (stack.enter_context(os.fdopen(end, mode)) for end, mode in zip(os.pipe(), "rw", strict=True))
        process: subprocess.Popen[str] | ForkedProcess
        if fork:
            assert not shell
            assert not isinstance(errors, int)
            process = forks_with_libraries().fork(
                module="server.cli", arguments=arguments, environment=variables, log=writer, errors=errors
            )
        else:
            command = [sys.executable, "-m", "server.cli", *arguments]
            if shell:
                command = ["bash", "-c", f'exec "$@" {shell}', "bash", *command]
            process = subprocess.Popen(
                [*WITH_PARENT, *command], stdout=writer, stderr=errors, env=variables, start_new_session=True
            )
        writer.close()
        try:
            while (address := re.search(r"http://127\.0\.0\.1:\d+", line := reader.readline())) is None:
                assert line or process.poll() is None, f"the server ended early: {process.wait()}"
            yield ServeProcess(address.group(), process)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def wait_until(condition: Any, limit: float = 120.0, what: str = "it") -> None:
    """Waits until ``condition()`` is true; the limit is there for what never comes, and a busy machine is slow."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {limit:g} s"
        time.sleep(0.02)
