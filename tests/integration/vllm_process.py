"""Real vLLM servers on CPU, as child processes of the tests."""

import os
import runpy
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx

from tests.child_process import WITH_PARENT
from tests.forked_process import ForkedProcess, Forks

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGIN = REPOSITORY / "deploy" / "vllm-plugin"
SERVE = REPOSITORY / "deploy" / "vllm-cpu" / "serve.py"
FORKED = Path(__file__).with_name("vllm_forked.py")
# What a server imports sooner or later.
IMPORTS = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llava",
)

# Small and quick to start: no compilation, room for short prompts only.
SMALL_SERVER = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8")
# Many servers live at once. What serve.py gives each, a gibibyte of cache, would take all memory of a small machine.
SMALL_CACHE = ("--kv-cache-memory-bytes", str(64 * 2**20))
# The server takes embeddings in place of images, and never loads the vision tower.
EMBEDDINGS_ONLY = ("--enable-mm-embeds", "--limit-mm-per-prompt", '{"image": 0, "video": 0}')

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # tiny models gain nothing from more, and several servers share the machine
}


class VllmForks:
    """vLLM servers forked from a process that has imported vLLM once, when first asked for one."""

    def __init__(self, python: Path, folder: Path) -> None:
        """Fork servers with vLLM's ``python``, from a process that keeps its socket and its log in ``folder``."""
        self.python = python
        self._forks = Forks(python, IMPORTS, folder, _serve_environment(ENVIRONMENT))

    def fork(self, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> ForkedProcess:
        """Start a server as ``serve.py`` would, but with a small cache."""
        variables = _serve_environment(environment)
        return self._forks.fork(file=FORKED, arguments=[*arguments, *SMALL_CACHE], environment=variables, log=log)

    def stop(self) -> None:
        """End the process, and with it the servers that still run."""
        self._forks.stop()


def _serve_environment(environment: Mapping[str, str]) -> dict[str, str]:
    of_serve: dict[str, str] = runpy.run_path(str(SERVE))["server_environment"](os.environ | environment)
    of_serve.pop("VLLM_CPU_KVCACHE_SPACE")  # it would win over the argument
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
        with self.log.open("wb") as log:
            if isinstance(self._python, VllmForks):
                self.process = self._python.fork(self._arguments, self._environment, log)
                return
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
        """Return the server of this model, name and arguments, perhaps still starting: ``wait_until_ready``.

        One that a test has left dead is started again.
        """
        key = (model, arguments, name, plugin)
        if key not in self._servers:
            log = self._logs / f"{len(self._servers)}-{name}.log"
            self._servers[key] = VllmServer(self._forks, model, *arguments, name=name, log=log, plugin=plugin)
        server = self._servers[key]
        if server.process is None or server.process.poll() is not None:
            server.start()
        return server

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
