"""Estimates the memory that a model needs, measures what is free, and releases what is unused."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError
from fs_runtime.loading.engine import psm_folder, resolve_device, resolve_dtype
from fs_runtime.psm.pretrained import is_pretrained, memory_needs

# Tensor names outside the vision part: those of the language model, and of the text towers of CLIP and SigLIP.
_LANGUAGE = re.compile(
    r"^(?:model\.)?(?:language_model|layers|embed_tokens|norm|lm_head|text_model)\.|^(?:text_projection|logit_)"
)
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# Values in memory at once during a pass, per value of the widest hidden state: attention, MLP and float32 copies.
# Measured with CLIP ViT-L: 21.
_LIVE = 24
_USUAL_SIDE, _USUAL_PATCH, _USUAL_WIDTH = 336, 14, 1024
_MARGIN = 1.1
_GIBI = 2**30


class MemoryShortError(CheckpointError):
    """There is not enough memory for a model; the message has the figures and the remedies."""


def check_memory(
    model: str, *, language_model: bool, batch_size: int | None, device: str, **options: str | None
) -> None:
    """Refuses a model that does not fit into the memory that is free now.

    Args:
        model: Folder or hub id. Only headers of its files are read.
        language_model: Whether its language model will be loaded too.
        batch_size: Samples in one batch; None for the default.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<index>``.
        options: As :func:`estimate_memory`.

    Raises:
        MemoryShortError: The estimate exceeds the free memory.
        CheckpointError: The checkpoint cannot be read.
    """
    device = resolve_device(device)
    free = free_memory(device)
    if free is None:
        return
    needed = estimate_memory(model, language_model=language_model, batch_size=batch_size, device=device, **options)
    if needed > free:
        raise MemoryShortError(
            f"{model} would take about {needed / _GIBI:.2f} GiB of memory on {device}, and {free / _GIBI:.2f} GiB are "
            "free: unload another model first, set a smaller batch_size, or give the gateway more memory"
        )


def estimate_memory(
    model: str,
    *,
    language_model: bool,
    batch_size: int | None = None,
    device: str = "auto",
    dtype: str | None = "auto",
    psm: str | None = "auto",
    revision: str | None = None,
) -> int:
    """Bytes that a model needs: weights of vision part, purifier, mapper and language model, and one batch.

    Caches, waiting images and the sketches of the spectral bound are not included. On a GPU one sample is counted
    instead of a batch, since the engine makes batches smaller when memory runs out.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    device = resolve_device(device)
    itemsize = getattr(torch, resolve_dtype(dtype or "auto", device)).itemsize
    checkpoint = Checkpoint(model, revision)
    values = _values(checkpoint, lambda name: language_model or not _LANGUAGE.match(name))
    folder = psm_folder(psm or "auto", model)
    if folder is not None:
        values += sum(map(_values_in, folder.glob("*.safetensors")))
    samples = 1 if device != "cpu" else batch_size or 32
    values += samples * _LIVE * _hidden_values(checkpoint.config(), purified=folder is not None)
    needed = itemsize * values
    if psm is not None and is_pretrained(psm):
        weights, live = memory_needs(psm)
        needed += 4 * (weights + samples * live * _side(checkpoint.config()) ** 2)  # in float32
    return int(_MARGIN * needed)


def _values(checkpoint: Checkpoint, wanted: Callable[[str], bool]) -> int:
    """How many numbers the wanted tensors of a checkpoint hold."""
    weight_map = checkpoint.json(_INDEX).get("weight_map")
    names: dict[str, list[str] | None] = {} if weight_map else {_SINGLE: None}
    for name, file in (weight_map or {}).items():
        if wanted(name):
            names.setdefault(file, []).append(name)  # type: ignore[union-attr] # lists, where there is an index
    total = 0
    for file, listed in names.items():
        path = checkpoint.file(file)
        if path is None:
            raise CheckpointError(f"{checkpoint.source} has no {file}: its safetensors weights are missing")
        total += _values_in(path, listed, wanted)
    return total


def _values_in(path: Path, listed: list[str] | None = None, wanted: Callable[[str], bool] = lambda _: True) -> int:
    """How many numbers the wanted tensors of a file hold, of those ``listed`` or all."""
    # With framework="numpy" the file is mapped read-only; with "pt" there must be memory for all of it.
    with safe_open(path, framework="numpy") as tensors:
        names = tensors.keys() if listed is None else listed
        return sum(prod(tensors.get_slice(name).get_shape()) for name in names if wanted(name))


def _hidden_values(config: dict[str, Any], *, purified: bool) -> int:
    """Numbers in one hidden state of one sample, and in the image itself where a purifier runs over it."""
    vision = config.get("vision_config", config)
    side = _side(config)
    patch = _number(vision.get("patch_size"), _USUAL_PATCH)
    width = _number(vision.get("embed_dim") or vision.get("hidden_size"), _USUAL_WIDTH)
    return (side // patch) ** 2 * width + (3 * side * side if purified else 0)


def _side(config: dict[str, Any]) -> int:
    """Pixels a side of the image that the encoder reads."""
    return _number(config.get("vision_config", config).get("image_size"), _USUAL_SIDE)


def _number(value: Any, otherwise: int) -> int:
    """A size from a configuration, which has a number or a list with one for each side."""
    if isinstance(value, list) and value:
        value = max(value)
    return value if isinstance(value, int) and value > 0 else otherwise


def free_memory(device: str) -> int | None:
    """Bytes that are free on a device; None if that cannot be found out.

    On a GPU, memory that this process's allocator holds unused counts as free. On the host, memory that the kernel can
    reclaim does, within the limits of the control groups.
    """
    if device != "cpu":
        index = torch.device(device)
        free, _ = torch.cuda.mem_get_info(index)
        return int(free + torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index))
    rooms = [room for room in (_available_to_machine(), *_available_to_groups()) if room is not None]
    return min(rooms) if rooms else None


def _available_to_machine() -> int | None:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _available_to_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that the process's control group and those above it leave free, in version 1 or 2 of control groups."""
    rooms = []
    for entry, top, limit_file, used_file, reclaimable in (
        (r"^0::/(.*)$", root, "memory.max", "memory.current", "inactive_file"),
        (
            r"^\d+:memory:/(.*)$",
            root / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        found = re.search(entry, _text(own), re.MULTILINE)
        group = top / (found[1] if found else "")
        while group.is_relative_to(top):
            limit, used = _text(group / limit_file).strip(), _text(group / used_file).strip()
            if limit.isdecimal() and used.isdecimal():  # version 2 has "max" where there is no limit
                cached = re.search(rf"^{reclaimable} (\d+)$", _text(group / "memory.stat"), re.MULTILINE)
                rooms.append(max(0, int(limit) - int(used) + (int(cached[1]) if cached else 0)))
            group = group.parent
    return rooms


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def release_memory() -> None:
    """Returns unreferenced memory to the device and the operating system."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory without it
    if trim is not None:
        trim(0)
