"""FLOPs of a network, and peak FLOP/s of a device: the two parts of FLOP utilisation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions in ``run``; an addition counts as one.

    Attention is counted as its matrix products, whatever kernel computes it.
    """
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@torch.inference_mode()
def matmul_peak(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """Peak FLOP/s of a device: those of its fastest square matrix product.

    It is the median of ``rounds`` measurements, maximised over a few sizes.
    """
    best = 0.0
    for side in _SIDES["cuda" if device.type == "cuda" else "cpu"]:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = a @ b  # warm-up
        rates = []
        for _ in range(rounds):
            _wait(device)
            start = time.perf_counter()
            torch.matmul(a, b, out=out)
            _wait(device)
            rates.append(2 * side**3 / (time.perf_counter() - start))
        best = max(best, statistics.median(rates))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
