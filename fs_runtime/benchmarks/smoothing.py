"""Speed of the smoothing pass, compared with the bare networks, a plain loop and the device's peak, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fs_runtime.benchmarks.flops import flops, matmul_peak
from fs_runtime.encoders.base import Grid
from fs_runtime.options import CompileMode
from fs_runtime.smoothing.compilation import WARM_UP_RUNS
from fs_runtime.smoothing.noise import NoiseStream
from fs_runtime.smoothing.smoother import Smoother

_SIGMA = 0.25


@dataclass(frozen=True, slots=True)
class SmoothingBenchmark:
    """Rates in samples per second, and ratios; each is the median over the rounds.

    A ratio is taken within a round, in which the machine is in about the same state for both rates.

    Attributes:
        device: Where it ran.
        dtype: Arithmetic of pass and bare networks.
        parts: The networks: the encoder, and purifier and mapper if there are any.
        compiled: Mode of ``torch.compile`` for pass and bare networks; None for eager.
        quantization: Format of the products in the encoder's linear layers; None for that of ``dtype``.
        warm_up_seconds: Time of the first batches of each size, in which networks are compiled.
        batch_size: The best one for the bare networks; the pass uses it too.
        bare_rates: Rate of the bare networks by batch size.
        bare: Bare networks at their best batch size: the ceiling.
        smoothing: The pass: noise, networks, unit features, sums and inner products.
        plain_loop: A simple script: one sample at a time in float32, its feature copied to the host.
        of_bare: Rate of the pass, divided by that of the bare networks.
        over_plain_loop: How many times faster the pass is than the plain loop.
        sample_flops: Floating-point operations that the networks need for one sample.
        peak_flops: Floating-point operations per second of the device's fastest matrix product in this dtype.
        flop_utilisation: Share of that peak that the pass uses.
        grid: Rows and columns of the encoder's tokens.
        image_seconds: Time of a single image, from its pixels to the mean, by its number of samples.
    """

    device: str
    dtype: str
    parts: str
    compiled: str | None
    quantization: str | None
    warm_up_seconds: float
    batch_size: int
    bare_rates: dict[int, float]
    bare: float
    smoothing: float
    plain_loop: float
    of_bare: float
    over_plain_loop: float
    sample_flops: int
    peak_flops: float
    flop_utilisation: float
    grid: Grid
    image_seconds: dict[int, float]


def benchmark_smoothing(
    smoother: Smoother,
    plain: Smoother,
    *,
    batch_sizes: Sequence[int],
    samples: int,
    image_samples: Sequence[int] = (),
    side: int = 448,
    rounds: int,
    compile_mode: CompileMode | None = None,
    progress: Callable[[str], None],
) -> SmoothingBenchmark:
    """Measures the smoothing pass.

    Args:
        smoother: To measure.
        plain: The same networks in float32 on the same device, for the plain loop.
        batch_sizes: Candidates for the best batch.
        samples: Samples in each measurement, rounded up to whole batches.
        image_samples: Numbers of samples for the timing of a single image.
        side: Sides of the picture, in pixels; they determine the grid of encoders that read any size.
        rounds: Measurements of each; they alternate, so that a slow phase of the machine affects all alike.
        compile_mode: Of ``torch.compile``, for this picture's shape and batches of the largest size, its half, quarter
            and eighth; None for eager.
        progress: Called with a description of each measurement.
    """
    encoder = smoother.encoder
    image = encoder.prepare(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    x = image.pixels.to(encoder.device)
    if compile_mode is not None:
        smoother.compile(compile_mode, x.shape[-3:], max(batch_sizes))
    level = torch.tensor([_SIGMA], device=encoder.device)

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
    def bare(batch_size: int, batches: int | None = None) -> int:
        batch = x.expand(batch_size, *x.shape).contiguous()
        batches = batches or -(-samples // batch_size)
        for _ in range(batches):
            smoother.features(batch, level.expand(batch_size), image.grid, noisy=True)
        return batches * batch_size

    def smooth(batch_size: int, wanted: int) -> int:
        state = smoother.start(image, _SIGMA, seed=1)
        while state.count < wanted:
            for products in smoother.step([(state, min(batch_size, wanted - state.count))]):
                products.image.cpu()
        smoother.finish(state)
        return state.count

    @torch.inference_mode()
    def plain_loop() -> int:
        noise = NoiseStream(1, plain.encoder.device)
        mean, count = np.zeros(0), min(samples, max(8, samples // 8))
        for _ in range(count):
            delta = torch.empty_like(x)[None]
            noise.draw(delta)
            feature = plain.features(x[None] + _SIGMA * delta, level, image.grid, noisy=True)
            feature = torch.nn.functional.normalize(feature, dim=-1)[0]
            mean = feature.cpu().numpy() + (mean if mean.size else 0)
        return count

    begun = time.perf_counter()
    for batch_size in batch_sizes:
        progress(f"warm-up, batch {batch_size}")
        bare(batch_size, WARM_UP_RUNS)
    sync()
    warm_up_seconds = time.perf_counter() - begun
    tried: dict[int, list[float]] = {batch_size: [] for batch_size in batch_sizes}
    for turn in range(rounds):
        for batch_size, rates in tried.items():
            progress(f"bare networks, batch {batch_size}, round {turn + 1} of {rounds}")
            rates.append(rate(lambda b=batch_size: bare(b)))  # type: ignore[misc]
    bare_rates = {batch_size: statistics.median(rates) for batch_size, rates in tried.items()}
    best = max(bare_rates, key=lambda b: bare_rates[b])

    runs: dict[str, Callable[[], int]] = {
        "bare networks": lambda: bare(best),
        "smoothing pass": lambda: smooth(best, -(-samples // best) * best),
        "plain loop": plain_loop,
    }
    for run in runs.values():
        run()  # warm-up
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name, run in runs.items():
            progress(f"{name}, round {turn + 1} of {rounds}")
            measured[name].append(rate(run))

    image_seconds = {}
    for count in image_samples:
        progress(f"one image, {count} samples")
        smooth(best, count)  # warm-up: the last batch may have another size
        image_seconds[count] = count / statistics.median(rate(lambda n=count: smooth(best, n)) for _ in range(rounds))  # type: ignore[misc]

    def ratio(name: str) -> float:
        return statistics.median(a / b for a, b in zip(measured["smoothing pass"], measured[name], strict=True))

    one = x[None].contiguous()
    sample_flops = flops(lambda: plain.features(one, level, image.grid, noisy=True))
    peak = matmul_peak(encoder.device, encoder.dtype)
    smoothing = statistics.median(measured["smoothing pass"])
    return SmoothingBenchmark(
        device=torch.cuda.get_device_name(encoder.device) if encoder.device.type == "cuda" else "cpu",
        dtype=str(encoder.dtype).removeprefix("torch."),
        parts=_parts(smoother),
        compiled=None if smoother.compiled is None else smoother.compiled.mode,
        quantization=encoder.quantization,
        warm_up_seconds=warm_up_seconds,
        batch_size=best,
        bare_rates=bare_rates,
        bare=statistics.median(measured["bare networks"]),
        smoothing=smoothing,
        plain_loop=statistics.median(measured["plain loop"]),
        of_bare=ratio("bare networks"),
        over_plain_loop=ratio("plain loop"),
        sample_flops=sample_flops,
        peak_flops=peak,
        flop_utilisation=sample_flops * smoothing / peak,
        grid=image.grid,
        image_seconds=image_seconds,
    )


def _parts(smoother: Smoother) -> str:
    present = (("purifier", smoother.purifier), ("encoder", smoother.encoder), ("mapper", smoother.mapper))
    return ", ".join(name for name, part in present if part is not None)
