"""The state of a GPU: whether it works, and what the driver says about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class GpuState:
    """One reading.

    Attributes:
        name: ``cuda:<index>``, as this process sees it.
        model: The manufacturer's name.
        total_bytes: Memory of the device.
        used_bytes: Taken by all processes together, the language model's among them if it shares the device.
        reserved_bytes: Taken by this process's allocator.
        utilization: Part of the last moments in which the device worked, in [0, 1]; None without nvidia-ml-py.
    """

    name: str
    model: str
    total_bytes: int
    used_bytes: int
    reserved_bytes: int
    utilization: float | None


def device_works(device: torch.device) -> bool:
    """Whether a device still computes; always true of the CPU.

    After some faults (an assertion in a kernel, an illegal address, a GPU that fell off the bus) every later CUDA call
    of the process fails, and only a new process helps. A full memory is no such fault.
    """
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
        return bool((torch.ones(1, device=device) + 1).item() == 2)
    except torch.OutOfMemoryError:
        return True
    except RuntimeError:
        return False


def gpu_state(device: torch.device) -> GpuState | None:
    """Reads the state of a CUDA device; None for any other."""
    if device.type != "cuda":
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    try:
        utilization = torch.cuda.utilization(index) / 100
    except Exception:  # the package is missing, or the driver does not tell (virtual GPUs): one figure fewer
        utilization = None
    return GpuState(
        name=f"cuda:{index}",
        model=torch.cuda.get_device_name(index),
        total_bytes=total,
        used_bytes=total - free,
        reserved_bytes=torch.cuda.memory_reserved(index),
        utilization=utilization,
    )
