"""The gateway at saturation for a long time: errors, latency, memory, and two tenants of which one floods.

    python -m tests.load.saturation --minutes 30 --output saturation.json

Starts ``fs-serve serve`` with the reference model, measures the modest tenant by itself for a minute, and then beside
a tenant that sends as much as it can: questions with and without streams, certificates, pictures of several sizes,
the same picture again, broken files, wrong fields, and clients that leave. Prints a line for every minute.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import random
import secrets
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import yaml
from PIL import Image

from fs_runtime.reference import example_images
from tests.integration.serve_process import serving

STEADY, FLOOD = "steady", "flood"
CLIENTS = {STEADY: 2, FLOOD: 24}
SHED = 429
QUESTIONS = ("Describe the image.", "How many shapes are there?", "What colour is the circle?", "Which digit is this?")


@dataclass
class Minute:
    """What one tenant saw in one minute; seconds are those of whole answers."""

    answered: int = 0
    shed: int = 0
    refused: int = 0
    left: int = 0
    samples: int = 0
    unexpected: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        p50, p99 = (round(float(np.percentile(self.seconds, q)), 3) for q in (50, 99)) if self.seconds else (None, None)
        return asdict(self) | {"seconds": None, "p50": p50, "p99": p99}


class Traffic:
    """The requests of one tenant."""

    def __init__(self, client: httpx.AsyncClient, key: str, tenant: str, seed: int) -> None:
        self._client, self._tenant = client, tenant
        self._headers = {"authorization": f"Bearer {key}"}
        self._random = random.Random(seed)
        self._known = [path.read_bytes() for path in example_images().values()]
        self.minute = Minute()

    async def run(self, until: float) -> None:
        while time.monotonic() < until:
            await self._one()

    async def _one(self) -> None:
        draw = self._random.random()
        flooding = self._tenant == FLOOD
        if flooding and draw < 0.08:
            await self._send(*self._wrong(), expected=(400, 413, 415))
        elif flooding and draw < 0.12:
            await self._leave()
        else:
            await self._send(*self._right(), expected=(200,))

    def _picture(self) -> str:
        if self._random.random() < 0.3:
            data = self._random.choice(self._known)
        else:
            height, width = self._random.choice([(64, 64), (224, 300), (900, 1200)])
            rng = np.random.default_rng(self._random.getrandbits(32))
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            file = io.BytesIO()
            small.resize((width, height)).save(file, "PNG" if height < 900 else "JPEG")
            data = file.getvalue()
        return f"data:image/png;base64,{base64.b64encode(data).decode()}"

    def _right(self) -> tuple[str, dict[str, Any]]:
        samples = 32 if self._tenant == STEADY else self._random.choice([16, 64, 256, 512])
        robustness = {"samples": samples}
        if self._random.random() < 0.4:
            return "/v1/certify", {"image": self._picture(), "robustness": robustness}
        content: list[dict[str, Any]] = [{"type": "text", "text": self._random.choice(QUESTIONS)}]
        if self._random.random() < 0.9:
            content.append({"type": "image_url", "image_url": {"url": self._picture()}})
        return "/v1/chat/completions", {
            "model": "fs-reference",
            "messages": [{"role": "user", "content": content}],
            "robustness": robustness,
            "stream": self._random.random() < 0.5,
            "max_tokens": 32,
        }

    def _wrong(self) -> tuple[str, dict[str, Any]]:
        broken = base64.b64encode(self._known[0][: self._random.randrange(200, 2000)]).decode()
        return self._random.choice(
            [
                ("/v1/certify", {"image": f"data:image/png;base64,{broken}"}),
                ("/v1/certify", {"image": self._picture(), "robustness": {"sigma": -1}}),
                ("/v1/chat/completions", {"model": "fs-reference", "messages": "hello"}),
                ("/v1/certify", {"image": "data:image/png;base64,AAAA"}),
            ]
        )

    async def _send(self, path: str, body: dict[str, Any], expected: tuple[int, ...]) -> None:
        start, minute = time.monotonic(), self.minute
        try:
            response = await self._client.post(path, json=body, headers=self._headers)
        except httpx.HTTPError as error:
            minute.unexpected[type(error).__name__] += 1
            return
        status = response.status_code
        if status == SHED:
            minute.shed += 1
            await asyncio.sleep(min(1.0, float(response.headers.get("retry-after", "1"))))
        elif status not in expected:
            minute.unexpected[f"{status} {response.text[:80]}"] += 1
        elif status != 200:
            minute.refused += 1
        elif body.get("stream") and ('"error"' in response.text or "data: [DONE]" not in response.text):
            minute.unexpected["broken stream"] += 1
        else:
            minute.answered += 1
            minute.samples += body["robustness"]["samples"]
            minute.seconds.append(time.monotonic() - start)

    async def _leave(self) -> None:
        path, body = self._right()
        try:
            await self._client.post(path, json=body, headers=self._headers, timeout=0.05)
        except httpx.TimeoutException:
            pass
        except httpx.HTTPError as error:
            self.minute.unexpected[type(error).__name__] += 1
        self.minute.left += 1


async def measure(url: str, keys: dict[str, str], process: psutil.Process, minutes: int) -> list[dict[str, Any]]:
    """One record a minute; the first is of the modest tenant by itself."""
    records = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:
        traffic = {tenant: Traffic(client, keys[tenant], tenant, seed) for seed, tenant in enumerate(CLIENTS)}
        for number in range(minutes + 1):
            tenants = (STEADY,) if number == 0 else tuple(CLIENTS)
            for tenant in tenants:
                traffic[tenant].minute = Minute()
            until = time.monotonic() + 60
            async with asyncio.TaskGroup() as group:
                for tenant in tenants:
                    for _ in range(CLIENTS[tenant]):
                        group.create_task(traffic[tenant].run(until))
            record: dict[str, Any] = {tenant: traffic[tenant].minute.summary() for tenant in tenants}
            record["resident_megabytes"] = round(process.memory_info().rss / 1e6)
            records.append(record)
            print(json.dumps({"minute": number} | record), flush=True)
    return records


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--minutes", type=int, default=30)
    options.add_argument("--output", type=Path)
    chosen = options.parse_args()
    keys = {tenant: secrets.token_urlsafe(32) for tenant in CLIENTS}
    access = {
        "tenants": {
            tenant: {"keys": [{"sha256": hashlib.sha256(key.encode()).hexdigest()}]} for tenant, key in keys.items()
        }
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "access.yaml"
        file.write_text(yaml.safe_dump(access))
        flags = ("--access-file", str(file), "--max-queued-samples", "4096", "--log-level", "warning")
        more = ("--cache-bytes", str(2**26))
        with serving(*flags, *more, stderr=subprocess.DEVNULL, fork=False, OMP_NUM_THREADS="2") as server:
            process = psutil.Process(server.process.pid)
            records = asyncio.run(measure(server.url, keys, process, chosen.minutes))
            status = server.stop(120)
    print(f"exit status {status}")
    if chosen.output:
        chosen.output.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
