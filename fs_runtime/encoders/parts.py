"""Helpers of the adapters: read the processor's configuration, prepare modules, check payloads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fs_runtime.encoders.base import Grid, PreparedImage
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError
from fs_runtime.preprocessing.resize import Preprocessed


def processor_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The image processor's configuration.

    Raises:
        CheckpointError: The checkpoint has none.
    """
    config = checkpoint.json("preprocessor_config.json")
    if not config:  # transformers 5 may keep it inside the processor's own file
        config = checkpoint.json("processor_config.json").get("image_processor", {})
    if not config:
        raise CheckpointError(f"{checkpoint.source} has no preprocessor_config.json")
    return config


def mean_and_std(processor: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixel normalisation; 0 and 1 if there is none."""
    if processor.get("do_normalize", True):
        return list(processor["image_mean"]), list(processor["image_std"])
    return [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]


def per_channel(values: list[float], device: torch.device) -> Tensor:
    """One value for each channel, to be broadcast over ``(B, C, H, W)``."""
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def fixed_size(x: Preprocessed, size: tuple[int, int], grid: Grid) -> PreparedImage:
    """The prepared image for an encoder that reads one size only.

    Raises:
        ValueError: The image has another size.
    """
    if x.pixels.shape[1:] != size:
        raise ValueError(f"preprocessing made {x.pixels.shape[1:]}, the encoder reads {size}")
    return PreparedImage(torch.from_numpy(x.pixels), x.spectral_norm, grid)


def materialise_position_ids(module: nn.Module) -> None:
    """Sets the non-persistent position indices, which have no values after construction on the meta device."""
    for inner in module.modules():
        ids = getattr(inner, "position_ids", None)
        if isinstance(ids, Tensor) and ids.is_meta:
            inner.position_ids = torch.arange(ids.shape[-1]).expand(ids.shape)


def frozen(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Moves and freezes a module in place: device, dtype, evaluation mode, no gradients for its weights."""
    return module.to(device=device, dtype=dtype).eval().requires_grad_(False)


def special_token_text(checkpoint: Checkpoint, token: int, default: str) -> str:
    """Text of a special token in ``tokenizer.json``."""
    for added in checkpoint.json("tokenizer.json").get("added_tokens", []):
        if added.get("id") == token:
            return str(added["content"])
    return default


def checked_embeddings(embeddings: Tensor, tokens: int, width: int) -> Tensor:
    """The ``(tokens, width)`` embeddings in float32, after a check of shape and values.

    Raises:
        ValueError: The shape is wrong, or a value is not finite. Such a payload can crash vLLM.
    """
    if tuple(embeddings.shape) != (tokens, width):
        raise ValueError(f"embeddings have shape {tuple(embeddings.shape)}, the language model needs {(tokens, width)}")
    if not bool(torch.isfinite(embeddings).all()):
        raise ValueError("embeddings hold values that are not finite")
    return embeddings.float()


def to_numpy(tensor: Tensor) -> NDArray[np.generic]:
    """The tensor as a host array."""
    array: NDArray[np.generic] = tensor.cpu().numpy()
    return array
