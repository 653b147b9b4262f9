"""Forks programs from one process that has imported what they need: ``python -P forks.py SOCKET MODULE…``.

For programs that take longer to import others' code than to do their own work. A fork has the arguments, environment,
working directory and output that it would have if it were started, and imports everything but those modules itself.

Each connection to the socket asks for one program: a JSON object with its ``module``, or its ``file``, and its
``arguments``, ``environment`` and ``folder``, together with the descriptors of its standard output and error. The
answers are its process id, and its exit status when it has ended, each as a line.
"""

import ctypes
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

PR_SET_PDEATHSIG = 1
LONGEST_REQUEST = 2**20


def next_fork() -> dict[str, Any]:
    """Fork programs for as long as the process that started this one lives; return, in each fork, what it is to be."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(sys.argv[1])
    listener.listen()
    events = selectors.DefaultSelector()
    events.register(listener, selectors.EVENT_READ)
    forks: dict[int, tuple[int, socket.socket]] = {}  # process id and connection by the descriptor that tells its end
    while True:
        for key, _ in events.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request, outputs, _, _ = socket.recv_fds(connection, LONGEST_REQUEST, 2)
                if (pid := os.fork()) == 0:
                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
                    os.setsid()
                    for number, output in enumerate(outputs, start=1):
                        os.dup2(output, number)
                    connection.send(b"%d\n" % os.getpid())
                    for other in [events, listener, connection, *(of_fork for _, of_fork in forks.values())]:
                        other.close()
                    program: dict[str, Any] = json.loads(request)
                    return program
                for output in outputs:
                    os.close(output)
                forks[ended := os.pidfd_open(pid)] = pid, connection
                events.register(ended, selectors.EVENT_READ)
            else:
                pid, connection = forks.pop(key.fd)
                _, status = os.waitpid(pid, 0)
                events.unregister(key.fd)
                os.close(key.fd)
                with connection, suppress(BrokenPipeError):  # whoever asked may have gone
                    connection.send(b"%d\n" % os.waitstatus_to_exitcode(status))


def become(arguments: list[str], environment: dict[str, str], folder: str, module: str = "", file: str = "") -> None:
    """Run a program as this process, whose end is the program's."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # nothing here owns one of them any more
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    if not environment.get("PYTHONSAFEPATH"):
        paths.insert(0, folder)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    sys.argv[1:] = arguments
    if module:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(file, run_name="__main__")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "only a process of one thread can be forked safely"
    become(**next_fork())
