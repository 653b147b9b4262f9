"""Measures latency over HTTP under load, and how close the throughput comes to that of the engine itself."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import numpy as np
from PIL import Image

Rate = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from sending a request to its complete answer.

    Attributes:
        count: Requests.
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile; with fewer than a hundred requests interpolated between the largest two.
        most: Maximum.
    """

    count: int
    p50: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """Summarises the latencies of some requests."""
        p50, p90, p99 = (float(value) for value in np.percentile(seconds, [50, 90, 99]))
        return cls(len(seconds), p50, p90, p99, max(seconds))


@dataclass(frozen=True, slots=True)
class ServeBenchmark:
    """Results for ``/v1/certify``, without a language model. A crowd is a number of concurrent requests.

    Attributes:
        clients: Requests in a crowd.
        samples: Noise samples of each of them, and of a small request.
        large_samples: Noise samples of the large request.
        rate: Samples per second of the pass without HTTP at the engine's batch size, measured between the rounds; None
            for a remote server.
        crowd: Latency of a crowd's requests, over all rounds.
        crowd_seconds: Seconds that a crowd takes: median of the rounds.
        crowd_rate: Samples per second of a crowd: median of the rounds.
        over_ideal: Time of a crowd divided by the time of its samples at ``rate``: median of the rounds.
        alone: Latency of a small request on an idle server.
        beside_large: Latency of a small request while a large one runs.
        small_beside: Number of small requests answered while the large one ran.
        uncached: Latency of sequential requests with fresh draws.
        cached: Latency of a request whose image is cached.
    """

    clients: int
    samples: int
    large_samples: int
    rate: float | None
    crowd: Latency
    crowd_seconds: float
    crowd_rate: float
    over_ideal: float | None
    alone: Latency
    beside_large: Latency
    small_beside: int
    uncached: Latency
    cached: Latency


async def benchmark_serve(
    client: httpx.AsyncClient,
    rate: Rate | None,
    *,
    clients: int,
    samples: int,
    large_samples: int,
    repeats: int,
    rounds: int,
    side: int,
    progress: Callable[[str], None],
) -> ServeBenchmark:
    """Measures a server.

    Args:
        client: HTTP client with the server's address.
        rate: Runs the pass without HTTP for that many samples, on an idle server, and returns samples per second; None
            for a remote server.
        clients: Requests in a crowd.
        samples: Noise samples of each of them, and of a small request.
        large_samples: Noise samples of the large request.
        repeats: Requests for each latency, except the crowd's.
        rounds: Number of crowds.
        side: Height and width of the images, in pixels.
        progress: Called with a description of each step.

    Raises:
        httpx.HTTPError: The server cannot be reached, or answers with an error.
    """
    numbers = iter(range(10**9))
    pictures = [_picture(next(numbers), side) for _ in range(clients)]

    async def ask(picture: str, count: int, *, cache: bool = False) -> float:
        start = time.perf_counter()
        body = {"image": picture, "robustness": {"samples": count, "cache": cache}}
        answer = await client.post("/v1/certify", json=body)
        answer.raise_for_status()
        return time.perf_counter() - start

    async def direct() -> float | None:
        return None if rate is None else await asyncio.to_thread(rate, clients * samples)

    await ask(pictures[0], samples)  # warm-up
    crowd: list[float] = []
    seconds: list[float] = []
    rates = [await direct()]
    for turn in range(rounds):
        progress(f"{clients} requests at once, round {turn + 1} of {rounds}")
        start = time.perf_counter()
        crowd += await asyncio.gather(*(ask(picture, samples) for picture in pictures))
        seconds.append(time.perf_counter() - start)
        rates.append(await direct())
    known = [value for value in rates if value is not None]
    best = map(max, itertools.pairwise(known))  # the better of the measurements before and after each round
    ratios = [took * rate / (clients * samples) for took, rate in zip(seconds, best, strict=False)]

    progress("small requests by themselves")
    alone = [await ask(pictures[0], samples) for _ in range(repeats)]
    progress("small requests beside a large one")
    large = asyncio.create_task(ask(_picture(next(numbers), side), large_samples))
    await asyncio.sleep(alone[0])
    beside: list[float] = []
    while not large.done() and len(beside) < repeats:
        beside.append(await ask(pictures[0], samples))
    during = len(beside) - 1 if large.done() else len(beside)
    await large
    progress("fresh and cached requests")
    uncached = [await ask(pictures[1 % clients], samples) for _ in range(repeats)]
    await ask(pictures[0], samples, cache=True)
    cached = [await ask(pictures[0], samples, cache=True) for _ in range(10 * repeats)]
    return ServeBenchmark(
        clients=clients,
        samples=samples,
        large_samples=large_samples,
        rate=statistics.median(known) if known else None,
        crowd=Latency.of(crowd),
        crowd_seconds=statistics.median(seconds),
        crowd_rate=clients * samples / statistics.median(seconds),
        over_ideal=statistics.median(ratios) if ratios else None,
        alone=Latency.of(alone),
        beside_large=Latency.of(beside),
        small_beside=during,
        uncached=Latency.of(uncached),
        cached=Latency.of(cached),
    )


def _picture(number: int, side: int) -> str:
    """Makes a smooth random image as a data URL."""
    colours = np.random.default_rng(number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
