"""From names in a configuration to a running engine."""

from __future__ import annotations

import torch

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing import Smoother


def resolve_device(device: str) -> str:
    """``auto`` is ``cuda`` where there is a GPU, else ``cpu``."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """``auto`` is ``bfloat16`` on a GPU, else ``float32``."""
    if dtype == "auto":
        return "float32" if device == "cpu" else "bfloat16"
    return dtype


def load_smoother(model: str, *, revision: str | None = None, device: str = "auto", dtype: str = "auto") -> Smoother:
    """Loads the vision part of ``model``, a folder or hub id. Raises as :func:`fs_runtime.encoders.load_encoder`."""
    device = resolve_device(device)
    return Smoother(load_encoder(model, revision=revision, device=device, dtype=resolve_dtype(dtype, device)))


def load_engine(
    model: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    max_queued_samples: int = 65536,
) -> SmoothingEngine:
    """Loads ``model`` and starts the engine; ``batch_size`` None picks one that suits the device."""
    smoother = load_smoother(model, revision=revision, device=device, dtype=dtype)
    if batch_size is None:
        batch_size = 32 if smoother.encoder.device.type == "cpu" else 128
    return SmoothingEngine(smoother, batch_size=batch_size, max_queued_samples=max_queued_samples)
