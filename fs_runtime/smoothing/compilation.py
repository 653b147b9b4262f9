"""Compiles the networks with ``torch.compile``, for one image shape and a few batch sizes.

A compiled kernel is made for fixed shapes, and the engine's batches vary. So a batch is padded up to the next of a few
sizes, and the padding's output is dropped. No network mixes the rows of a batch, so neither padding nor neighbours
change a row's features, except for the order in which sums are rounded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fs_runtime.encoders.checkpoint import CheckpointError
from fs_runtime.options import CompileMode

log = logging.getLogger("fs_runtime.compilation")

Networks = Callable[[Tensor, Tensor, tuple[int, int], bool], Tensor]
"""Maps ``(B, C, H, W)`` pixels, ``(B,)`` noise levels, the token grid, and whether there is noise, to features."""

_WITH_GRAPHS = ("reduce-overhead", "max-autotune")
_GRAPHS_IN_THREADS = "2.13"  # in earlier versions CUDA graphs fail outside the main thread (pytorch/pytorch#123177)
_HALVINGS = 3
WARM_UP_RUNS = 3  # with CUDA graphs the first run is ordinary, the second records, the third replays
_RECOMPILE_LIMIT = 256  # torch's default is 8 shapes of a function, which several models together exceed


class CompilationError(CheckpointError):
    """The networks cannot be compiled here; the message has the reason and the remedy."""


def check_mode(mode: CompileMode, device: torch.device) -> None:
    """Refuses a mode that would fail on the engine's thread.

    Raises:
        CompilationError: The mode uses CUDA graphs, and this version of torch makes them on the main thread only.
    """
    if mode in _WITH_GRAPHS and device.type == "cuda" and torch.__version__ < _GRAPHS_IN_THREADS:
        raise CompilationError(
            f"compile {mode} has CUDA graphs, which torch {torch.__version__} cannot make for a server: install torch "
            f"{_GRAPHS_IN_THREADS} or later, or choose default or max-autotune-no-cudagraphs"
        )


def batch_sizes(largest: int) -> tuple[int, ...]:
    """Sizes that batches are padded to, the smallest first: the largest, its half, quarter and eighth, rounded up."""
    return tuple(sorted({-(-largest // 2**halving) for halving in range(_HALVINGS + 1)}))


class CompiledNetworks:
    """Runs batches of one shape through compiled networks.

    A batch larger than the largest size runs in parts. One that fills less than half of the smallest size runs eagerly.
    So at most half of a batch is padding, and halving a batch that does not fit into memory helps as it does without
    compilation. Each size is compiled at its first use; :meth:`warm_up` uses them all.

    Args:
        networks: The function to compile.
        mode: Of ``torch.compile``. Two modes replay CUDA graphs on a GPU, which belong to the thread that made them.
        shape: ``(C, H, W)`` of the images or tiles.
        largest: Rows of the largest batch.
    """

    def __init__(self, networks: Networks, mode: CompileMode, shape: Sequence[int], largest: int) -> None:
        self.mode: CompileMode = mode
        self.shape = tuple(shape)
        self.sizes = batch_sizes(largest)
        self._networks = networks
        self._compiled = torch.compile(networks, mode=mode, dynamic=False)
        self._used: set[int] = set()

    def accepts(self, x: Tensor) -> bool:
        """Whether ``(B, C, H, W)`` pixels have the compiled shape, and no gradients are needed."""
        return tuple(x.shape[1:]) == self.shape and torch.is_inference_mode_enabled()

    def __call__(self, x: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features of ``(B, C, H, W)`` noisy pixels with ``(B,)`` noise levels."""
        largest = self.sizes[-1]
        parts = [
            self._part(*rows, grid) for rows in zip(torch.split(x, largest), torch.split(sigma, largest), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, x: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features of a batch that is no larger than the largest size."""
        rows = len(x)
        size = next(size for size in self.sizes if size >= rows)
        if size > 2 * rows:
            return self._networks(x, sigma, grid, True)
        x, sigma = _padded(x, size), _padded(sigma, size)
        if self.mode in _WITH_GRAPHS and x.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            return self._run(x, sigma, grid)[:rows].clone()  # the next replay writes to the same memory
        return self._run(x, sigma, grid)[:rows]

    def _run(self, x: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        if len(x) in self._used:
            return self._compiled(x, sigma, grid, True)
        with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT):
            features = self._compiled(x, sigma, grid, True)
        self._used.add(len(x))
        return features

    @torch.inference_mode()
    def warm_up(self, device: torch.device, grid: tuple[int, int]) -> None:
        """Compiles every size; call it on the thread that will run the networks.

        Raises:
            CompilationError: Compilation fails on this machine.
        """
        for size in self.sizes:
            begun = time.monotonic()
            x, sigma = torch.zeros(size, *self.shape, device=device), torch.full((size,), 0.1, device=device)
            try:
                for _ in range(WARM_UP_RUNS):
                    self(x, sigma, grid)
            except torch.OutOfMemoryError:
                log.warning("no memory for batches of %d: smaller ones will be taken", size)
                continue
            except Exception as error:
                reason = " ".join(str(error).split("\n")[:2])  # the first line names the part of torch that failed
                raise CompilationError(
                    f"the networks cannot be compiled ({type(error).__name__}: {reason}); torch.compile needs a C++ "
                    "compiler such as g++, and a folder that programs may be loaded from (TORCHINDUCTOR_CACHE_DIR); "
                    "see to both, or leave compile out"
                ) from error
            log.info("compiled for batches of %d in %.1f s", size, time.monotonic() - begun)


def _padded(rows: Tensor, size: int) -> Tensor:
    """Pads to ``size`` rows with copies of the last one; the result is contiguous."""
    missing = size - len(rows)
    if not missing:
        return rows.contiguous()
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
