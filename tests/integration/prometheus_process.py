"""The real Prometheus with the repository's own configuration; only the targets are others."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.child_process import WITH_PARENT

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result

    def value(self, expression: str, limit: float = 60.0) -> float:
        """The one value of an expression, as soon as there is one that is not NaN."""
        end = time.monotonic() + limit
        while True:
            found = [float(each["value"][1]) for each in self.query(expression)]
            if len(found) == 1 and found[0] == found[0]:
                return found[0]
            assert time.monotonic() < end, f"{expression}: {found}"
            time.sleep(0.5)


@contextmanager
def prometheus_process(folder: Path, targets: dict[str, str]) -> Iterator[Prometheus]:
    """Prometheus on a free port of 127.0.0.1, scraping ``targets``: host and port by job."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copytree(DEPLOY / "rules", folder / "rules")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets.get(job["job_name"], f"127.0.0.1:{port}")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            *WITH_PARENT,
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 30
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/-/ready").is_success:
                    break
            time.sleep(0.1)
        yield Prometheus(url)
    finally:
        process.terminate()
        process.wait(30)
        log.close()
