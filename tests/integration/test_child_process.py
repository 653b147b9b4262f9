"""A run of pytest that is killed leaves no server behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from .serve_process import wait_until
from .vllm_process import VllmForks, VllmServer, vllm_python

ROOT = Path(__file__).resolve().parents[2]
# A server without vLLM: how it is started and stopped is the same, and `sleep` starts at once.
SERVES = """
import time
from pathlib import Path
from tests.integration.vllm_process import VllmServer

def test_serves(request):
    program = Path("program")
    program.write_text("#!/bin/sh\\nexec sleep 600\\n")
    program.chmod(0o700)
    server = VllmServer(program.resolve(), Path("model"), name="none", log=Path("log"))
    server.start()
    request.addfinalizer(server.stop)
    while Path(f"/proc/{server.process.pid}/comm").read_text() != "sleep\\n":
        time.sleep(0.01)
    Path("written").write_text(str(server.process.pid))
    Path("written").rename("pid")
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_server_ends_with_the_tests(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "test_serves.py").write_text(SERVES)
    tests = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.child_process", "-p", "no:cacheprovider", "test_serves.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )
    pid = tmp_path / "pid"
    try:
        wait_until(lambda: pid.exists() or tests.poll() is not None, 300, "the start of the server")
        server = psutil.Process(int(pid.read_text()))
        tests.send_signal(number)
        assert tests.wait(60) == (pytest.ExitCode.INTERRUPTED if number == signal.SIGTERM else -number)
        wait_until(lambda: ended(server), 60, "the end of the server")
    finally:
        tests.kill()
        tests.wait()


@pytest.mark.vllm
def test_forked_servers_end_with_the_process_that_forked_them(tiny_llava: Path, tmp_path: Path) -> None:
    forks = VllmForks(vllm_python(), tmp_path)
    server = VllmServer(forks, tiny_llava, name="none", log=tmp_path / "log")
    try:
        with server:
            assert server.process is not None
            family = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
            assert len(family) > 1  # the engine is one of them
            forks.stop()
            for process in family:
                wait_until(lambda process=process: ended(process), 60, f"the end of {process}")
    finally:
        forks.stop()


def ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or waits only for somebody to ask how it ended."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_this_run_heeds_sigterm() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
