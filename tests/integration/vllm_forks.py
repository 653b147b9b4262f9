"""Forks vLLM servers from one process that has imported vLLM: ``python vllm_forks.py SOCKET``, with vLLM's Python.

Importing vLLM takes longer than all else that a small server does to start, and a server does it twice, in its own
process and in its engine's. A server forked from here is the same program with the same arguments, environment and log.
Its engine comes from a second fork, by multiprocessing's fork server, where vLLM would have spawned it.

Each connection to the socket asks for one server, as a JSON object with its ``arguments``, ``environment`` and ``log``.
The answers are its process id, and its exit status when it has ended, each as a line.
"""

import ctypes
import importlib
import itertools
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, get_context, util

SERVER = "vllm.entrypoints.openai.api_server"
# What a server imports sooner or later, but for the module that is run.
IMPORTS = (
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llava",
)
PR_SET_PDEATHSIG = 1


def main() -> None:
    """Fork servers for as long as the process that started this one lives."""
    for name in IMPORTS:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in events.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = json.loads(connection.makefile().readline())
                if (pid := os.fork()) == 0:
                    _serve(connection, **request)
                events.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            else:
                pid, connection = key.data
                _, status = os.waitpid(pid, 0)
                events.unregister(key.fileobj)
                os.close(key.fd)
                with connection:
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _serve(connection: socket.socket, arguments: Sequence[str], environment: dict[str, str], log: str) -> None:
    """Become the server that a connection asks for."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        connection.sendall(b"%d\n" % os.getpid())
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = [path for path in environment["PYTHONPATH"].split(os.pathsep) if path not in sys.path]
        sys.argv[1:] = arguments
        _fork_engines()
        runpy.run_module(SERVER, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork_engines() -> None:
    """Let vLLM fork its engine from a copy of this process as it is now, where it has one thread."""
    spawn = util.spawnv_passfds
    util.spawnv_passfds = _fork_and_run
    forkserver.ensure_running()
    util.spawnv_passfds = spawn
    engines = importlib.import_module("vllm.v1.engine.utils")
    engines.get_mp_context = lambda: get_context("forkserver")


def _fork_and_run(path: bytes, arguments: Sequence[str], passed: Sequence[int]) -> int:
    """Do in a fork what a new Python would be started for: the program in its last argument."""
    if pid := os.fork():
        return pid
    try:
        for first, last in itertools.pairwise([2, *sorted(passed), os.sysconf("SC_OPEN_MAX")]):
            os.closerange(first + 1, last)
        exec(arguments[-1])
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
