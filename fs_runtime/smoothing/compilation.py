"""The networks as ``torch.compile`` makes them: for one shape of image and a few sizes of batch, faster than eager.

A compiled kernel is made for fixed shapes, and the engine's batches vary. So a batch is padded up to the next of a few
sizes, and what the padding gives is thrown away. Rows do not see one another in any network, so neither padding nor
neighbours change a row's features, but for the order in which sums are rounded.
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
"""``(B, C, H, W)`` pixels, ``(B,)`` noise levels, the tokens' rows and columns, whether there is noise: to features."""

_WITH_GRAPHS = ("reduce-overhead", "max-autotune")
_GRAPHS_IN_THREADS = "2.13"  # before, torch's CUDA graphs fail on threads of Python's (pytorch/pytorch#123177)
_HALVINGS = 3
WARM_UP_RUNS = 3  # CUDA graphs: torch runs once as it is, records, and replays from then on
_MANY_SHAPES = 256  # torch stops compiling a function after 8, which several models together exceed


class CompilationError(CheckpointError):
    """The networks cannot be compiled here; the message has the reason and the remedy."""


def check_mode(mode: CompileMode, device: torch.device) -> None:
    """Refuses what would fail on an engine's own thread.

    Raises:
        CompilationError: The mode has CUDA graphs, and this version of torch makes them on the main thread alone.
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

    A batch of more rows than the largest size is run in parts. One that fills less than half of the smallest size runs
    eagerly, so that at most half of a batch is padding: where memory runs out, halving the batch helps as it does
    without. Every size is compiled when it is first used; :meth:`warm_up` uses them all.

    Args:
        networks: What is compiled.
        mode: Of ``torch.compile``. CUDA graphs, which two of them replay on a GPU, belong to the thread that made them.
        shape: ``(C, H, W)`` of the images or tiles that are compiled for.
        largest: Rows of the largest batch.
    """

    def __init__(self, networks: Networks, mode: CompileMode, shape: Sequence[int], largest: int) -> None:
        self.mode: CompileMode = mode
        self.shape = tuple(shape)
        self.sizes = batch_sizes(largest)
        self._networks = networks
        self._compiled = torch.compile(networks, mode=mode, dynamic=False)
        self._used: set[int] = set()

    def takes(self, x: Tensor) -> bool:
        """Whether ``(B, C, H, W)`` pixels have the shape, and nothing is to be differentiated."""
        return tuple(x.shape[1:]) == self.shape and torch.is_inference_mode_enabled()

    def __call__(self, x: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features of ``(B, C, H, W)`` noisy pixels with ``(B,)`` noise levels, as the networks give them."""
        largest = self.sizes[-1]
        parts = [
            self._part(*rows, grid) for rows in zip(torch.split(x, largest), torch.split(sigma, largest), strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, x: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        """The same for no more rows than the largest size."""
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
        with torch._dynamo.config.patch(recompile_limit=_MANY_SHAPES):
            features = self._compiled(x, sigma, grid, True)
        self._used.add(len(x))
        return features

    @torch.inference_mode()
    def warm_up(self, device: torch.device, grid: tuple[int, int]) -> None:
        """Compiles every size, on the thread that will use them.

        Raises:
            CompilationError: It does not work here.
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
    """``size`` contiguous rows: those given, and copies of the last one, whose values are as harmless as its own."""
    missing = size - len(rows)
    if not missing:
        return rows.contiguous()
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
