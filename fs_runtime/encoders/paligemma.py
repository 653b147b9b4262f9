"""PaliGemma: a SigLIP tower at a fixed resolution, a linear projector, and a Gemma language model."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from typing_extensions import override

from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError, fingerprint, load_weights
from fs_runtime.encoders.parts import (
    checked_embeddings,
    fixed_size,
    frozen,
    materialise_position_ids,
    mean_and_std,
    per_channel,
    processor_config,
    special_token_text,
    to_numpy,
)
from fs_runtime.preprocessing.resize import ResizeCrop

# On disk: with or without a leading `model.`, with or without `vision_model.`.
_KEY = re.compile(r"^(?:model\.)?(vision_tower|multi_modal_projector)\.(?:vision_model\.|linear\.)?(.+)$")


class PaliGemmaEncoder(VisionEncoder):
    """Vision tower and projector of a PaliGemma or PaliGemma 2 checkpoint (Beyer et al. 2024, arXiv 2407.07726).

    Args:
        checkpoint: Where the weights are.
        device: Where to put them.
        dtype: Arithmetic of tower and projector.

    Raises:
        CheckpointError: The checkpoint is not of this family, or is incomplete.
    """

    family = "paligemma"
    max_images = 1  # the prompt begins with its image

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        config = AutoConfig.for_model(**raw)
        vision = config.vision_config
        if vision.model_type != "siglip_vision_model":
            raise CheckpointError(f"a PaliGemma with a {vision.model_type} tower is not supported; use SigLIP")
        vision.vision_use_head = False  # nothing reads the pooled output
        self.device, self.dtype = device, dtype
        processor = {"do_center_crop": False} | processor_config(checkpoint)  # SigLIP's does not crop by default
        try:
            self._geometry = ResizeCrop.from_processor_config(processor)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        mean, std = mean_and_std(processor)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}
        side = vision.image_size // vision.patch_size
        self._grid, self._size = (side, side), (vision.image_size, vision.image_size)
        width = int(config.text_config.hidden_size)
        with torch.device("meta"):
            tower = AutoModel.from_config(  # type: ignore[no-untyped-call]
                vision, dtype=torch.float32, attn_implementation="sdpa"
            )
            projector: nn.Module = nn.Linear(vision.hidden_size, width)
        inner = getattr(tower, "vision_model", tower)
        load_weights(inner, checkpoint.tensors(lambda key: _name(key, "vision_tower")), "vision tower")
        load_weights(projector, checkpoint.tensors(lambda key: _name(key, "multi_modal_projector")), "projector")
        materialise_position_ids(inner)
        self.fingerprint = fingerprint({"config": raw, "preprocessing": self.preprocessing}, inner, projector)
        self._tower, self._projector = frozen(tower, device, dtype), frozen(projector, device, dtype)
        self.embedding_size = self.language_width = width
        self.control_tokens = (special_token_text(checkpoint, config.image_token_index, "<image>"),)

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        return fixed_size(self._geometry(image), self._size, self._grid)

    @override
    def encode(self, x: Tensor) -> Tensor:
        pixels = ((x.float() - self._mean) / self._std).to(self.dtype)
        features: Tensor = self._tower(pixel_values=pixels).last_hidden_state
        return features

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        projected: Tensor = self._projector(features.to(self.dtype))
        return projected

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        return {
            "image_embeds": to_numpy(checked_embeddings(embeddings, self._grid[0] * self._grid[1], self.embedding_size))
        }


def _name(key: str, part: str) -> str | None:
    match = _KEY.match(key)
    return match.group(2) if match and match.group(1) == part else None
