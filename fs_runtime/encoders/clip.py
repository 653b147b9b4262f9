"""CLIP and SigLIP alone: certified features without a language model."""

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
    to_numpy,
)
from fs_runtime.options import Stage
from fs_runtime.preprocessing.resize import ResizeCrop

_PROJECTION = "visual_projection.weight"
# On disk: `vision_model.…`, or the bare names where the checkpoint is the vision part alone.
_KEY = re.compile(r"^(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm|head)\..+)$")


class ClipEncoder(VisionEncoder):
    """Image encoder of a CLIP or SigLIP checkpoint.

    The encoder stage gives the tokens of the last layer. The projector stage gives the image embedding that search
    indexes store and compare with texts: CLIP's projected class token, SigLIP's attention-pooled head.

    Args:
        checkpoint: Where the weights are: of the whole model or of its vision part.
        device: Where to put them.
        dtype: Arithmetic.

    Raises:
        CheckpointError: The checkpoint is not of this family, or is incomplete.
    """

    control_tokens = ()

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        config = AutoConfig.for_model(**raw)
        vision = getattr(config, "vision_config", config)
        self.family = str(raw["model_type"])
        self.device, self.dtype = device, dtype
        processor = processor_config(checkpoint)
        if "siglip" in self.family:
            processor = {"do_center_crop": False} | processor  # SigLIP's processor does not crop by default
        try:
            self._geometry = ResizeCrop.from_processor_config(processor)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        mean, std = mean_and_std(processor)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}
        side = vision.image_size // vision.patch_size
        self._grid, self._size = (side, side), (vision.image_size, vision.image_size)
        with torch.device("meta"):
            tower = AutoModel.from_config(  # type: ignore[no-untyped-call]
                vision, dtype=torch.float32, attn_implementation="sdpa"
            )
        inner = getattr(tower, "vision_model", tower)
        self._pool = getattr(inner, "head", None)
        self._normalise = inner.post_layernorm if self._pool is None else nn.Identity()  # SigLIP has applied it
        load_weights(inner, checkpoint.tensors(_tower_name), "vision tower")
        materialise_position_ids(inner)
        projection, width = _projection(checkpoint, vision.hidden_size)
        self.fingerprint = fingerprint(
            {"config": raw, "geometry": repr(self._geometry), "mean": mean, "std": std}, inner, projection
        )
        self._tower, self._projection = frozen(tower, device, dtype), frozen(projection, device, dtype)
        self.embedding_size = width

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
        features = features.to(self.dtype)
        if self._pool is None:
            pooled = self._normalise(features[..., 0, :])
        else:
            pooled = self._pool(features.reshape(-1, *features.shape[-2:])).view(*features.shape[:-2], -1)
        embedding: Tensor = self._projection(pooled).unsqueeze(-2)
        return embedding

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        if stage == "projector":
            return ((1, 1),)
        picture = (grid[0], grid[1])
        return ((1, 1), picture) if self._pool is None else (picture,)  # the class token comes first

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        return {"image_embeds": to_numpy(checked_embeddings(embeddings, 1, self.embedding_size))}


def _tower_name(key: str) -> str | None:
    match = _KEY.match(key)
    return match.group(1) if match else None


def _projection(checkpoint: Checkpoint, width: int) -> tuple[nn.Module, int]:
    """CLIP's linear map to the joint space of images and texts, and its width; the identity if there is none."""
    weights = checkpoint.tensors(lambda key: "weight" if key == _PROJECTION else None)
    if not weights:
        return nn.Identity(), width
    rows, columns = weights["weight"].shape
    projection = nn.Linear(columns, rows, bias=False, device="meta")
    load_weights(projection, weights, "projection")
    return projection, rows
