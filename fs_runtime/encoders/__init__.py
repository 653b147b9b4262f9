"""Encoder adapters, one per model family, and functions that load them."""

from __future__ import annotations

import importlib

import torch

from fs_runtime.encoders.base import ImageSizeError, PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError
from fs_runtime.encoders.families import FAMILIES, Family, supported_family

__all__ = [
    "FAMILIES",
    "CheckpointError",
    "ImageSizeError",
    "PreparedImage",
    "VisionEncoder",
    "load_encoder",
    "load_family",
]


def load_family(model: str, *, revision: str | None = None) -> Family:
    """The family of a checkpoint; reads only its ``config.json``.

    Raises:
        CheckpointError: The checkpoint is missing, or of a family that is not supported.
    """
    checkpoint = Checkpoint(model, revision)
    try:
        return supported_family(checkpoint.config(), model)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from None


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
    family = load_family(model, revision=revision)
    module, _, name = str(family.adapter).partition(":")
    adapter = getattr(importlib.import_module(module), name)  # imports only this family
    encoder: VisionEncoder = adapter(Checkpoint(model, revision), torch.device(device), getattr(torch, dtype))
    return encoder
