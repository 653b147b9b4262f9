"""The smoothing pass in several ways of computing the same networks, one after another, in one run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fs_runtime.benchmarks.smoothing import SmoothingBenchmark
from fs_runtime.options import CompileMode, Quantization


@dataclass(frozen=True, slots=True)
class Way:
    """A way of computing the networks.

    Attributes:
        compiled: Mode of ``torch.compile``; None runs them as they are.
        quantization: Format of the products in the encoder's linear layers; None for that of its dtype.
    """

    compiled: CompileMode | None = None
    quantization: Quantization | None = None

    def __str__(self) -> str:
        how = "eager" if self.compiled is None else f"compiled {self.compiled}"
        return how if self.quantization is None else f"{self.quantization}, {how}"


@dataclass(frozen=True, slots=True)
class MeasuredWay:
    """What came of one.

    Attributes:
        way: Its name.
        found: Rates and ratios; None where it failed.
        of_first_bare: The pass's part of the rate of the bare networks in the first way that worked, the same for all.
        error: Why it failed.
    """

    way: str
    found: SmoothingBenchmark | None = None
    of_first_bare: float | None = None
    error: str | None = None


def benchmark_ways(
    ways: Sequence[Way], measure: Callable[[Way], SmoothingBenchmark], tell: Callable[[MeasuredWay], None]
) -> list[MeasuredWay]:
    """Measures each; one that fails, because the device cannot do it, does not keep the others from being measured.

    Args:
        ways: One after another.
        measure: Loads the networks anew and measures them in one way.
        tell: Told of each when it is done, so that a run that is cut short leaves something.
    """
    measured: list[MeasuredWay] = []
    bare: float | None = None
    for way in ways:
        try:
            found = measure(way)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            measured.append(MeasuredWay(str(way), error=f"{type(error).__name__}: {reason}"))
        else:
            bare = bare or found.bare
            measured.append(MeasuredWay(str(way), found, found.smoothing / bare))
        tell(measured[-1])
        _forget_compiled()
    return measured


def _forget_compiled() -> None:
    """Gives memory back, that of CUDA graphs included, before the next way."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
