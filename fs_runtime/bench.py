"""How fast the smoothing pass is, beside the bare encoder and a plain loop, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fs_runtime.encoders import VisionEncoder
from fs_runtime.noise import NoiseStream
from fs_runtime.smoothing import Smoother


@dataclass(frozen=True, slots=True)
class SmoothingBenchmark:
    """Rates in samples per second, and ratios; each is the median over the rounds.

    A ratio is taken within a round, where both rates meet the machine in about the same state.

    Attributes:
        device: Where it ran.
        dtype: Arithmetic of pass and bare encoder.
        batch_size: The bare encoder's best one; the pass uses it too.
        encoder_rates: Rate of the bare encoder by batch size.
        encoder: Bare encoder at its best batch size: the ceiling.
        smoothing: The pass: noise, encoder, unit features, sums and inner products.
        plain_loop: One sample at a time in float32, its feature copied to the host: what a first script does.
        of_encoder: The pass's part of the bare encoder's rate.
        over_plain_loop: How many times faster the pass is than the plain loop.
    """

    device: str
    dtype: str
    batch_size: int
    encoder_rates: dict[int, float]
    encoder: float
    smoothing: float
    plain_loop: float
    of_encoder: float
    over_plain_loop: float


def benchmark_smoothing(
    smoother: Smoother,
    plain_encoder: VisionEncoder,
    *,
    batch_sizes: Sequence[int],
    samples: int,
    rounds: int,
    progress: Callable[[str], None],
) -> SmoothingBenchmark:
    """Measures the pass.

    Args:
        smoother: What is measured.
        plain_encoder: The same model in float32 on the same device, for the plain loop.
        batch_sizes: Candidates for the best batch.
        samples: Samples in each measurement, rounded up to whole batches.
        rounds: Measurements of each; they take turns, so that a slow moment of the machine meets all alike.
        progress: Told what is measured.
    """
    encoder = smoother.encoder
    image = encoder.prepare(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    x = image.pixels.to(encoder.device)

    def sync() -> None:
        if encoder.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(run: Callable[[], int]) -> float:
        sync()
        start = time.perf_counter()
        done = run()
        sync()
        return done / (time.perf_counter() - start)

    @torch.inference_mode()
    def bare(batch_size: int) -> int:
        batch = x.expand(batch_size, *x.shape).contiguous()
        batches = -(-samples // batch_size)
        for _ in range(batches):
            encoder.encode(batch)
        return batches * batch_size

    def smooth(batch_size: int) -> int:
        state = smoother.start(image, 0.25, seed=1)
        batches = -(-samples // batch_size)
        for _ in range(batches):
            for products in smoother.step([(state, batch_size)]):
                products.image.cpu()
        smoother.finish(state)
        return state.count

    @torch.inference_mode()
    def plain() -> int:
        noise = NoiseStream(1, plain_encoder.device)
        mean, count = np.zeros(0), max(8, samples // 8)
        for _ in range(count):
            delta = torch.empty_like(x)[None]
            noise.draw(delta)
            feature = plain_encoder.encode(x[None] + 0.25 * delta)
            feature = torch.nn.functional.normalize(feature, dim=-1)[0]
            mean = feature.cpu().numpy() + (mean if mean.size else 0)
        return count

    tried: dict[int, list[float]] = {batch_size: [] for batch_size in batch_sizes}
    for turn in range(rounds):
        for batch_size, rates in tried.items():
            progress(f"bare encoder, batch {batch_size}, round {turn + 1} of {rounds}")
            if not turn:
                bare(batch_size)  # warm-up
            rates.append(rate(lambda b=batch_size: bare(b)))  # type: ignore[misc]
    encoder_rates = {batch_size: statistics.median(rates) for batch_size, rates in tried.items()}
    best = max(encoder_rates, key=lambda b: encoder_rates[b])

    runs: dict[str, Callable[[], int]] = {
        "bare encoder": lambda: bare(best),
        "smoothing pass": lambda: smooth(best),
        "plain loop": plain,
    }
    for run in runs.values():
        run()  # warm-up
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name, run in runs.items():
            progress(f"{name}, round {turn + 1} of {rounds}")
            measured[name].append(rate(run))

    def ratio(name: str) -> float:
        return statistics.median(a / b for a, b in zip(measured["smoothing pass"], measured[name], strict=True))

    return SmoothingBenchmark(
        device=torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else "cpu",
        dtype=str(encoder.dtype).removeprefix("torch."),
        batch_size=best,
        encoder_rates=encoder_rates,
        encoder=statistics.median(measured["bare encoder"]),
        smoothing=statistics.median(measured["smoothing pass"]),
        plain_loop=statistics.median(measured["plain loop"]),
        of_encoder=ratio("bare encoder"),
        over_plain_loop=ratio("plain loop"),
    )
