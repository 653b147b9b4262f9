"""How long requests take through HTTP under load, and how near a crowd of them comes to the device's own rate."""

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
    """Seconds from the request to its whole answer.

    Attributes:
        count: Requests.
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile; with fewer than a hundred requests between the largest two.
        most: The largest.
    """

    count: int
    p50: float
    p90: float
    p99: float
    most: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """Of some requests."""
        p50, p90, p99 = (float(value) for value in np.percentile(seconds, [50, 90, 99]))
        return cls(len(seconds), p50, p90, p99, max(seconds))


@dataclass(frozen=True, slots=True)
class ServeBenchmark:
    """What clients of ``/v1/certify`` see; the language model has no part in it.

    Attributes:
        clients: Requests at once in the crowd.
        samples: Of each of them, and of the small requests.
        large_samples: Of the large request.
        rate: The pass by itself at the engine's batch size, samples per second, measured between the rounds; None for
            a server elsewhere.
        crowd: Latency of the requests of a crowd, all rounds.
        crowd_seconds: Time of one crowd: median over the rounds.
        crowd_rate: Samples per second of a crowd: median.
        over_ideal: Time of a crowd over the time that its samples take at ``rate``: median of the rounds' ratios.
        alone: Latency of a small request by itself.
        beside_large: Latency of a small request while a large one is drawn.
        small_beside: Small requests that were answered while the large one was under way.
        uncached: Latency of one request after another with fresh draws, for an image of the cached ones' size.
        cached: Latency of a request whose image is in the cache.
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
        client: Speaks to it.
        rate: Runs the pass by itself for so many samples, while the server is idle, and gives samples per second; None
            if that is not possible.
        clients: Requests at once in the crowd.
        samples: Of each of them.
        large_samples: Of the large request.
        repeats: Requests behind each latency other than the crowd's.
        rounds: Crowds.
        side: Sides of the pictures, in pixels.
        progress: Told what is measured.

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
    best = map(max, itertools.pairwise(known))  # of the measurements before and after each round
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
    """A smooth random picture as a data URL."""
    colours = np.random.default_rng(number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
