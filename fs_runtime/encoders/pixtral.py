"""Pixtral in transformers' format (a LLaVA with a Pixtral tower): any resolution, one token for each patch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, PixtralVisionModel
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from typing_extensions import override

from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError, fingerprint, load_weights
from fs_runtime.encoders.parts import (
    checked_embeddings,
    frozen,
    mean_and_std,
    per_channel,
    processor_config,
    special_token_text,
    to_numpy,
)
from fs_runtime.preprocessing.resize import Filter, Preprocessed, ResizeCrop, check_rescaling, filter_of_resample


@dataclass(frozen=True, slots=True)
class FitPatches:
    """Shrink to fit a square, then round up to whole patches: one resize, whose size depends on the image's alone.

    Attributes:
        patch: Pixels along a patch.
        longest: Pixels along the square.
        filter: Interpolation kernel.
    """

    patch: int
    longest: int
    filter: Filter = "bicubic"

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width after the resize."""
        ratio = max(height, width) / self.longest
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        # For an image thinner than a pixel the processor gives size 0, which no encoder reads: at least one patch.
        rows, columns = (max(1, math.ceil(side / self.patch)) for side in (height, width))
        return rows * self.patch, columns * self.patch

    def __call__(self, image: NDArray[np.uint8]) -> Preprocessed:
        """Applies the map to one ``(H, W, C)`` uint8 image."""
        return ResizeCrop(self.size(*image.shape[:2]), None, self.filter)(image)


class PixtralEncoder(VisionEncoder):
    """Vision transformer and projector of a Pixtral checkpoint (arXiv 2410.07073, section 2.2).

    Both stages have one token for each patch. Beside the embeddings, the payload has ``grid``: rows and columns of
    tokens, since the prompt marks the ends of rows.

    Args:
        checkpoint: Where the weights are.
        device: Where to put them.
        dtype: Arithmetic of tower and projector.

    Raises:
        CheckpointError: The checkpoint is not of this family, or is incomplete.
    """

    family = "pixtral"

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        if "text_config" not in raw:
            raise CheckpointError(f"{checkpoint.source} is a vision tower alone; take the whole model")
        config: Any = AutoConfig.for_model(**raw)
        vision = config.vision_config
        layer = config.vision_feature_layer
        if layer not in (-1, vision.num_hidden_layers) or config.vision_feature_select_strategy != "full":
            raise CheckpointError(
                f"{checkpoint.source} does not read all tokens of the last layer; no other is supported"
            )
        self.device, self.dtype = device, dtype
        self._patch, self._head_width = int(vision.patch_size), int(vision.hidden_size // vision.num_attention_heads)
        self._theta = float((getattr(vision, "rope_parameters", None) or {}).get("rope_theta", 10000.0))
        processor = processor_config(checkpoint)
        try:
            self._geometry = _geometry(processor, self._patch)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        mean, std = mean_and_std(processor)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}
        with torch.device("meta"):
            tower = PixtralVisionModel._from_config(  # type: ignore[no-untyped-call]
                vision, dtype=torch.float32, attn_implementation="sdpa"
            )
            projector = LlavaMultiModalProjector(config)
        tower.patch_positional_embedding = nn.Identity()  # computed by _rotary_embedding for a whole grid at once
        load_weights(tower, checkpoint.tensors(lambda key: _name(key, "vision_tower.")), "vision tower")
        load_weights(projector, checkpoint.tensors(lambda key: _name(key, "multi_modal_projector.")), "projector")
        self.fingerprint = fingerprint({"config": raw, "preprocessing": self.preprocessing}, tower, projector)
        self._tower: Any = frozen(tower, device, dtype)
        self._projector = frozen(projector, device, dtype)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self._rotation = lru_cache(maxsize=16)(self._rotary_embedding)
        self.embedding_size = int(config.text_config.hidden_size)
        image = special_token_text(checkpoint, config.image_token_index, "[IMG]")
        self.control_tokens = (image, "[IMG_BREAK]", "[IMG_END]")

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        x = self._geometry(image)
        rows, columns = (side // self._patch for side in x.pixels.shape[1:])
        return PreparedImage(torch.from_numpy(x.pixels), x.spectral_norm, (rows, columns))

    @override
    def encode(self, x: Tensor) -> Tensor:
        pixels = ((x.float() - self._mean) / self._std).to(self.dtype)
        patches = self._tower.patch_conv(pixels)  # (B, D, rows, columns)
        h = self._tower.ln_pre(patches.flatten(2).mT)
        # transformers packs images into one sequence with a block mask; here they are a batch of one size.
        rotation = self._rotation((patches.shape[2], patches.shape[3]))
        features: Tensor = self._tower.transformer(h, position_embeddings=rotation).last_hidden_state
        return features

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        projected: Tensor = self._projector(features.to(self.dtype))
        return projected

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        rows, columns = image.grid
        return {
            "image_embeds": to_numpy(checked_embeddings(embeddings, rows * columns, self.embedding_size)),
            "grid": np.array([rows, columns], dtype=np.int64),
        }

    def _rotary_embedding(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``(N, d)`` of the two-dimensional rotary embedding: even frequencies turn with the row."""
        frequencies = self._theta ** -(np.arange(0, self._head_width, 2) / self._head_width)
        rows, columns = (axis.reshape(-1, 1) for axis in np.indices(grid))
        half = np.concatenate([rows * frequencies[::2], columns * frequencies[1::2]], axis=1)
        angles = np.concatenate([half, half], axis=1)
        # Not an inference tensor: attacks use the cached tensor with gradients.
        with torch.inference_mode(False):
            cos, sin = (torch.from_numpy(part).to(self.device, self.dtype) for part in (np.cos(angles), np.sin(angles)))
            return cos, sin


def _geometry(processor: dict[str, Any], patch: int) -> FitPatches:
    """The resize that a ``preprocessor_config.json`` describes.

    Raises:
        ValueError: It does not fit the tower, or asks for a step that the map cannot express.
    """
    configured = processor.get("patch_size", 16)
    configured = configured.get("height") if isinstance(configured, dict) else configured
    if configured != patch:
        raise ValueError(f"preprocessor_config.json has patch_size={configured}, the vision tower {patch}")
    longest = (processor.get("size") or {"longest_edge": 1024}).get("longest_edge")
    if not longest or not processor.get("do_resize", True) or processor.get("do_center_crop"):
        raise ValueError("preprocessor_config.json must resize to a longest_edge, and not crop")
    check_rescaling(processor)
    return FitPatches(patch, int(longest), filter_of_resample(processor))


def _name(key: str, prefix: str) -> str | None:
    name = key.removeprefix("model.")  # on disk with or without it
    return name.removeprefix(prefix) if name.startswith(prefix) else None
