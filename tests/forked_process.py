"""Programs forked from one process that has imported what they need: see ``forks.py``."""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from .child_process import WITH_PARENT

SCRIPT = Path(__file__).with_name("forks.py")
# What takes most of the time in which a command of this project imports others' code.
LIBRARIES = (
    "fastapi",
    "openai",
    "prometheus_client",
    "scipy.stats",
    "torch",
    "torch.distributed.tensor",
    "transformers.activations",
    "transformers.modeling_utils",
)


class ForkedProcess:
    """A program that ``Forks`` has forked, with what is used of ``subprocess.Popen``."""

    def __init__(self, answers: socket.socket) -> None:
        """Read process id and exit status from ``answers``."""
        self._answers = answers
        self.pid = int(answers.recv(64))
        self.returncode: int | None = None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """Return the exit status, or ``None`` while the process runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when there is one; ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(SCRIPT), timeout or 0)
            with self._answers:  # nothing is said when the process that forks has ended, and its forks with it
                self.returncode = int(self._answers.recv(64) or -signal.SIGTERM)
        return self.returncode


class Forks:
    """Forks of a process that is started when first asked for one."""

    def __init__(self, python: Path, imports: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Start the process with ``python``, which imports the modules in ``imports`` with these variables set.

        It keeps its socket and its log in ``folder``.
        """
        self._log = folder / "forks.log"
        self._address = folder / "forks"
        self._command = [*WITH_PARENT, str(python), "-P", str(SCRIPT), str(self._address), *imports]
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def fork(
        self,
        *,
        module: str = "",
        file: Path | None = None,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: IO[Any],
        errors: IO[Any] | None = None,
    ) -> ForkedProcess:
        """Run a module or a file in a session of its own, with output and ``errors`` going to files, or both to one."""
        if self._process is None:
            self._start()
        program = {"module": module} if file is None else {"file": str(file)}
        request = program | {"arguments": arguments, "environment": dict(environment), "folder": str(Path.cwd())}
        answers = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answers.connect(str(self._address))
        socket.send_fds(answers, [json.dumps(request).encode()], [log.fileno(), (errors or log).fileno()])
        return ForkedProcess(answers)

    def run(
        self, module: str, *arguments: str, environment: Mapping[str, str], timeout: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a module to its end, with its output captured; ``subprocess.TimeoutExpired`` if it takes too long."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = self.fork(module=module, arguments=arguments, environment=environment, log=output, errors=errors)
            try:
                code = process.wait(timeout)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
            written = []
            for file in (output, errors):
                file.seek(0)
                written.append(file.read().decode())
        return subprocess.CompletedProcess([module, *arguments], code, *written)

    def stop(self) -> None:
        """End the process, and with it the forks that still run."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _start(self, limit: float = 300.0) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        end = time.monotonic() + limit
        while not self._address.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"nothing can be forked\n{self._log.read_text(errors='replace')}")
            time.sleep(0.05)


@functools.cache
def forks_with_libraries() -> Forks:
    """Forks of a process that has imported ``LIBRARIES``, with one thread; it ends with this process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    forks = Forks(Path(sys.executable), LIBRARIES, Path(folder.name), os.environ | {"OMP_NUM_THREADS": "1"})
    atexit.register(forks.stop)
    return forks
