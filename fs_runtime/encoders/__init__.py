"""Encoder adapters, one per model family, and the way to the right one."""

from __future__ import annotations

import torch

from fs_runtime.encoders.base import PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError
from fs_runtime.encoders.llava import LlavaEncoder

__all__ = ["FAMILIES", "CheckpointError", "PreparedImage", "VisionEncoder", "load_encoder"]

FAMILIES = {"llava": LlavaEncoder}


def load_encoder(
    model: str, *, revision: str | None = None, device: str = "cpu", dtype: str = "float32"
) -> VisionEncoder:
    """Loads the vision part of a checkpoint.

    Args:
        model: Local folder or hub id.
        revision: Hub revision.
        device: ``cpu``, ``cuda`` or ``cuda:<index>``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        CheckpointError: The checkpoint is missing, incomplete, or of a family that is not supported.
    """
    checkpoint = Checkpoint(model, revision)
    family = checkpoint.config().get("model_type")
    adapter = FAMILIES.get(str(family))
    if adapter is None:
        raise CheckpointError(f"{model} is of family {family!r}; supported: {', '.join(sorted(FAMILIES))}")
    return adapter(checkpoint, torch.device(device), getattr(torch, dtype))
