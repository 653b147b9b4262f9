"""Cost of purifiers, compared with the encoder behind them."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fs_runtime.benchmarks.flops import flops
from fs_runtime.benchmarks.random_models import write_random_model
from fs_runtime.encoders import VisionEncoder, load_encoder
from fs_runtime.psm.network import PsmNetwork

ENCODER_SHAPE = "clip-vit-l-14-336"
ENCODER = "CLIP ViT-L/14-336 encoder"
_SIGMA = 0.25


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """Cost of one network for one image, measured alone on the device.

    Attributes:
        name: Of the network.
        parameters: Number of its weights; None for the encoder.
        flops: Floating-point operations of matrix products and convolutions for one image as the encoder reads it.
        flops_share: The same as a fraction of the encoder's.
        seconds: For one image, in batches: the median over the rounds.
        seconds_share: Time as a fraction of the encoder's in the same round: the median over the rounds.
    """

    name: str
    parameters: int | None
    flops: int
    flops_share: float
    seconds: float
    seconds_share: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Costs of all networks, with the settings of the measurement."""

    device: str
    dtype: str
    threads: int
    side: int
    batch_size: int
    rows: list[NetworkCost]


def random_encoder(device: str, dtype: str) -> VisionEncoder:
    """An encoder in the shape of LLaVA-1.5's with random weights, which do not change its cost."""
    with tempfile.TemporaryDirectory() as folder:
        return load_encoder(str(write_random_model(ENCODER_SHAPE, Path(folder))), device=device, dtype=dtype)


@torch.inference_mode()
def measure_costs(
    encoder: VisionEncoder,
    purifiers: Mapping[str, PsmNetwork],
    *,
    batch_size: int,
    rounds: int,
    progress: Callable[[str], None] = lambda _: None,
) -> Costs:
    """Times encoder and purifiers in turn, so that a slow phase of the machine affects all alike.

    Args:
        encoder: One that reads images of one size, such as :func:`random_encoder`.
        purifiers: By name, on the encoder's device and in its dtype.
        batch_size: Images at once.
        rounds: Measurements of each.
        progress: Called with a description of each measurement.
    """
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    x = encoder.prepare(picture).pixels.to(encoder.device).expand(batch_size, -1, -1, -1).contiguous()
    sigma = torch.full((batch_size,), _SIGMA, device=encoder.device)
    runs: dict[str, Callable[[int], Tensor]] = {ENCODER: lambda n: encoder.encode(x[:n])}
    for name, purifier in purifiers.items():
        runs[name] = lambda n, network=purifier: network(x[:n], sigma[:n])  # type: ignore[misc]
    counted = {name: flops(lambda r=run: r(1)) for name, run in runs.items()}  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, rounds):  # round -1 is a warm-up
        for name, run in runs.items():
            progress(f"{name}, round {max(turn, 0) + 1} of {rounds}")
            began = _now(encoder.device)
            run(batch_size)
            if turn >= 0:
                seconds[name].append((_now(encoder.device) - began) / batch_size)
    sizes = {name: sum(weight.numel() for weight in network.parameters()) for name, network in purifiers.items()}
    rows = [
        NetworkCost(
            name,
            sizes.get(name),
            counted[name],
            counted[name] / counted[ENCODER],
            statistics.median(seconds[name]),
            statistics.median(a / b for a, b in zip(seconds[name], seconds[ENCODER], strict=True)),
        )
        for name in runs
    ]
    on_gpu = encoder.device.type == "cuda"
    return Costs(
        device=torch.cuda.get_device_name(encoder.device) if on_gpu else "cpu",
        dtype=str(encoder.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        side=x.shape[-1],
        batch_size=batch_size,
        rows=rows,
    )


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
