"""Real vLLM servers on CPU, as child processes of the tests."""

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from tests.child_process import WITH_PARENT

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN = REPOSITORY / "deploy" / "vllm-plugin"
SERVE = REPOSITORY / "deploy" / "vllm-cpu" / "serve.py"
FORKS = Path(__file__).with_name("vllm_forks.py")

# Small and quick to start: no compilation, room for short prompts only.
SMALL_SERVER = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8")
# The server takes embeddings in place of images, and never loads the vision tower.
EMBEDDINGS_ONLY = ("--enable-mm-embeds", "--limit-mm-per-prompt", '{"image": 0, "video": 0}')

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # tiny models gain nothing from more, and several servers share the machine
}


class ForkedProcess:
    """A server that ``VllmForks`` has forked, with what is used of ``subprocess.Popen``."""

    def __init__(self, answers: socket.socket) -> None:
        """Read process id and exit status from ``answers``, which is closed when both are known."""
        with answers:
            # Without a buffer: what has come and is not read yet can be seen by select.
            self._lines = answers.makefile("rb", buffering=0)
        self.pid = int(self._lines.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or ``None`` while the process runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when there is one; ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""
        if self.returncode is None:
            if not select.select([self._lines], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(FORKS), timeout or 0)
            with self._lines:  # nothing is said when the process that forks has ended, and its servers with it
                self.returncode = int(self._lines.readline() or -signal.SIGTERM)
        return self.returncode


class VllmForks:
    """Servers forked from a process that has imported vLLM once: see ``vllm_forks.py``."""

    def __init__(self, python: Path, folder: Path) -> None:
        """Fork servers with vLLM's ``python``; the process starts when first needed, and its log goes to ``folder``."""
        self.python = python
        self._log = folder / "forks.log"
        self._address = folder / "forks.socket"
        self._process: subprocess.Popen[bytes] | None = None

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> ForkedProcess:
        """Start a server in a session of its own, as ``serve.py`` would."""
        if self._process is None:
            self._start()
        request = {"arguments": arguments, "environment": self._environment(environment), "log": str(log)}
        answers = socket.socket(socket.AF_UNIX)
        answers.connect(str(self._address))
        answers.sendall(json.dumps(request).encode() + b"\n")
        return ForkedProcess(answers)

    def stop(self) -> None:
        """End the process, and with it the servers that still run."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def _start(self, limit: float = 300.0) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*WITH_PARENT, str(self.python), str(FORKS), str(self._address)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(ENVIRONMENT),
                start_new_session=True,
            )
        end = time.monotonic() + limit
        while not self._address.exists():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"vLLM could not be imported.\n{self._log.read_text(errors='replace')}")
            time.sleep(0.05)

    def _environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        of_serve: dict[str, str] = runpy.run_path(str(SERVE))["server_environment"](os.environ | environment)
        return of_serve


class VllmServer:
    """A vLLM server on a free port of 127.0.0.1, in a process group of its own.

    ``start`` returns at once and ``wait_until_ready`` waits, so that several servers can start side by side; the
    context manager does both, and stops the server in the end.
    """

    def __init__(
        self, python: Path | VllmForks, model: Path, *arguments: str, name: str, log: Path, plugin: bool = False
    ) -> None:
        """Prepare to serve the checkpoint folder ``model`` as ``name``, with vLLM's further ``arguments``.

        The server starts from nothing with ``python``, or is forked. With ``plugin``, vLLM has the one of
        ``deploy/vllm-plugin``.
        """
        port = _free_port()
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.process: subprocess.Popen[bytes] | ForkedProcess | None = None
        self._python = python
        self._environment = ENVIRONMENT | ({"PYTHONPATH": str(PLUGIN)} if plugin else {})
        self._arguments = ["--model", str(model), "--served-model-name", name]
        self._arguments += ["--host", "127.0.0.1", "--port", str(port), *SMALL_SERVER, *arguments]

    def __enter__(self) -> Self:
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, with everything it prints going to the log file."""
        if isinstance(self._python, VllmForks):
            self.process = self._python.fork(self._arguments, self._environment, self.log)
            return
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*WITH_PARENT, str(self._python), str(SERVE), *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self._environment,
                start_new_session=True,
            )

    def wait_until_ready(self, limit: float = 300.0) -> None:
        """Wait until the server is healthy; ``RuntimeError`` with the end of its log if it dies or takes too long."""
        assert self.process is not None, "start the server first"
        end = time.monotonic() + limit
        while time.monotonic() < end:
            if (code := self.process.poll()) is not None:
                raise RuntimeError(f"vLLM ended with exit status {code}.\n{self.log_tail()}")
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=5).is_success:
                    return
            time.sleep(0.2)
        raise RuntimeError(f"vLLM was not ready after {limit:.0f} s.\n{self.log_tail()}")

    def stop(self, grace: float = 15.0) -> None:
        """End the whole process group: ask, wait up to ``grace`` seconds, then kill what is left."""
        process, self.process = self.process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace)
        with suppress(ProcessLookupError):  # the engine, where it has outlived the server
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log_tail(self, lines: int = 120) -> str:
        """Return the last ``lines`` lines of the log, under its path."""
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join([f"The end of {self.log}:", *text[-lines:]])


class VllmServers:
    """All servers of a test session: each is started when first asked for, shared, and stopped at the end."""

    def __init__(self, forks: VllmForks, logs: Path) -> None:
        """Fork servers; their logs go into the folder ``logs``."""
        self._forks = forks
        self._logs = logs
        self._servers: dict[tuple[object, ...], VllmServer] = {}

    def start(self, model: Path, *arguments: str, name: str, plugin: bool = False) -> VllmServer:
        """Return the server of this model, name and arguments, perhaps still starting: ``wait_until_ready``."""
        key = (model, arguments, name, plugin)
        if key not in self._servers:
            log = self._logs / f"{len(self._servers)}-{name}.log"
            self._servers[key] = VllmServer(self._forks, model, *arguments, name=name, log=log, plugin=plugin)
            self._servers[key].start()
        return self._servers[key]

    def stop(self) -> None:
        """Stop all servers."""
        for server in self._servers.values():
            server.stop()
        self._servers.clear()


def vllm_python() -> Path:
    """Return the Python that has vLLM (``FS_VLLM_PYTHON``, or ``.venv-vllm``); ``FileNotFoundError`` without one."""
    configured = os.environ.get("FS_VLLM_PYTHON")
    python = Path(configured) if configured else REPOSITORY / ".venv-vllm" / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"no vLLM: {python} does not exist; deploy/vllm-cpu/setup.sh .venv-vllm makes it")
    return python


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
