"""The state of a GPU: whether it works, and what the driver says about it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class GpuState:
    """One reading of a GPU's state.

    Attributes:
        name: ``cuda:<index>``, as this process sees it.
        model: The manufacturer's name.
        total_bytes: Memory of the device.
        used_bytes: Taken by all processes together, the language model's among them if it shares the device.
        reserved_bytes: Taken by this process's allocator.
        limit_bytes: Most that it may take; all of the device unless :func:`limit_memory` was called.
        utilization: Share of the last moments in which the device was busy, in [0, 1]; None without nvidia-ml-py.
    """

    name: str
    model: str
    total_bytes: int
    used_bytes: int
    reserved_bytes: int
    limit_bytes: int
    utilization: float | None


def limit_memory(device: torch.device, fraction: float) -> None:
    """Caps the memory that torch may allocate on a device in this process, at a fraction of the device's memory.

    Beyond it torch raises OutOfMemoryError even where the device has room, which makes batches smaller. CUDA itself
    (context and kernels, about 0.5 GB) is not counted. Call it before anything is allocated.

    Args:
        device: A CUDA device.
        fraction: In (0, 1].

    Raises:
        ValueError: The device is no GPU, or the fraction is out of range.
    """
    if device.type != "cuda":
        raise ValueError(f"a share of GPU memory needs a GPU, and the device is {device}")
    if not 0 < fraction <= 1:
        raise ValueError(f"a share of GPU memory lies in (0, 1], not {fraction}")
    torch.cuda.set_per_process_memory_fraction(float(fraction), _index(device))


def device_works(device: torch.device) -> bool:
    """Whether a device still computes; always true of the CPU.

    After some faults (an assertion in a kernel, an illegal address, a GPU that fell off the bus) every later CUDA call
    of the process fails, and only a new process helps. Running out of memory is no such fault.
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
    """Reads the state of a CUDA device; None for any other, and for one that no longer answers."""
    if device.type != "cuda":
        return None
    index = _index(device)
    try:
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError:
        return None
    try:
        utilization = torch.cuda.utilization(index) / 100
    except Exception:  # the package is missing, or the driver does not report it (virtual GPUs)
        utilization = None
    return GpuState(
        name=f"cuda:{index}",
        model=torch.cuda.get_device_name(index),
        total_bytes=total,
        used_bytes=total - free,
        reserved_bytes=torch.cuda.memory_reserved(index),
        limit_bytes=int(total * torch.cuda.get_per_process_memory_fraction(index)),
        utilization=utilization,
    )


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
