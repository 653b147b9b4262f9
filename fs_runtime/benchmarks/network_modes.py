"""Benchmarks the smoothing pass with several modes of the same networks (compilation, quantization), in one run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fs_runtime.benchmarks.smoothing import SmoothingBenchmark
from fs_runtime.options import CompileMode, Quantization


@dataclass(frozen=True, slots=True)
class NetworkMode:
    """A mode in which the networks run.

    Attributes:
        compiled: Mode of ``torch.compile``; None for eager.
        quantization: Format of the products in the encoder's linear layers; None for that of its dtype.
    """

    compiled: CompileMode | None = None
    quantization: Quantization | None = None

    def __str__(self) -> str:
        how = "eager" if self.compiled is None else f"compiled {self.compiled}"
        return how if self.quantization is None else f"{self.quantization}, {how}"


@dataclass(frozen=True, slots=True)
class MeasuredMode:
    """Result of one mode.

    Attributes:
        way: Name of the mode.
        found: Rates and ratios; None if it failed.
        of_first_bare: Rate of the pass, divided by that of the bare networks in the first mode that worked.
        error: Why it failed; None if it worked.
    """

    way: str
    found: SmoothingBenchmark | None = None
    of_first_bare: float | None = None
    error: str | None = None


def benchmark_modes(
    modes: Sequence[NetworkMode],
    measure: Callable[[NetworkMode], SmoothingBenchmark],
    report: Callable[[MeasuredMode], None],
) -> list[MeasuredMode]:
    """Measures each mode; if one fails, for example because the device does not support it, the others still run.

    Args:
        modes: To measure, one after another.
        measure: Loads the networks again and measures them in one mode.
        report: Called with each result at once, so that an interrupted run leaves some.
    """
    measured: list[MeasuredMode] = []
    bare: float | None = None
    for mode in modes:
        try:
            found = measure(mode)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            measured.append(MeasuredMode(str(mode), error=f"{type(error).__name__}: {reason}"))
        else:
            bare = bare or found.bare
            measured.append(MeasuredMode(str(mode), found, found.smoothing / bare))
        report(measured[-1])
        _forget_compiled()
    return measured


def _forget_compiled() -> None:
    """Frees memory before the next mode, that of CUDA graphs included."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
