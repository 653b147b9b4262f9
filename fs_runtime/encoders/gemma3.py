"""Gemma 3: a SigLIP tower at a fixed resolution, its tokens pooled to a smaller square."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
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
from fs_runtime.options import Stage
from fs_runtime.preprocessing.resize import ResizeCrop

# On disk: `vision_tower.vision_model.…`, with or without a leading `model.`, with or without `vision_model.`.
_KEY = re.compile(r"^(?:model\.)?(vision_tower|multi_modal_projector)\.(?:vision_model\.)?(.+)$")


class Gemma3Encoder(VisionEncoder):
    """Vision tower and projector of a Gemma 3 checkpoint (arXiv 2503.19786, section 2.1).

    The encoder stage gives the tower's tokens. The projector pools blocks of them, so its stage gives fewer.

    Args:
        checkpoint: Where the weights are.
        device: Where to put them.
        dtype: Arithmetic of tower and projector.

    Raises:
        CheckpointError: The checkpoint is not of this family, is incomplete, or its processor cuts images (pan and
            scan), which is not supported.
    """

    family = "gemma3"

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        config: Any = AutoConfig.for_model(**raw)
        vision = config.vision_config
        self.device, self.dtype = device, dtype
        processor = processor_config(checkpoint)
        if processor.get("do_pan_and_scan"):
            raise CheckpointError(
                f"{checkpoint.source}: preprocessor_config.json sets do_pan_and_scan; set it to false"
            )
        try:
            self._geometry = ResizeCrop.from_processor_config({"do_center_crop": False, "resample": 2} | processor)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        mean, std = mean_and_std(processor)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}
        side, pooled = vision.image_size // vision.patch_size, round(config.mm_tokens_per_image**0.5)
        self._grid, self._pooled, self._size = (side, side), (pooled, pooled), (vision.image_size, vision.image_size)
        if hasattr(vision, "vision_use_head"):
            vision.vision_use_head = False  # SigLIP's pooling head is not used
        with torch.device("meta"):
            tower = AutoModel.from_config(  # type: ignore[no-untyped-call]
                vision, dtype=torch.float32, attn_implementation="sdpa"
            )
            projector = Gemma3MultiModalProjector(config)
        inner = getattr(tower, "vision_model", tower)
        load_weights(inner, checkpoint.tensors(lambda key: _name(key, "vision_tower")), "vision tower")
        load_weights(projector, checkpoint.tensors(lambda key: _name(key, "multi_modal_projector")), "projector")
        materialise_position_ids(tower)
        self.fingerprint = fingerprint({"config": raw, "preprocessing": self.preprocessing}, inner, projector)
        self._tower: Any = frozen(tower, device, dtype)
        self._projector: nn.Module = frozen(projector, device, dtype)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self.embedding_size = int(config.text_config.hidden_size)
        self.control_tokens = tuple(
            special_token_text(checkpoint, getattr(config, name), usual)
            for name, usual in (
                ("boi_token_index", "<start_of_image>"),
                ("image_token_index", "<image_soft_token>"),
                ("eoi_token_index", "<end_of_image>"),
            )
        )

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
        one_by_one = features.to(self.dtype).reshape(-1, *features.shape[-2:])
        projected: Tensor = self._projector(one_by_one)
        return projected.view(*features.shape[:-2], *projected.shape[-2:])

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        return (self._grid if stage == "encoder" else self._pooled,)

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        rows, columns = self._pooled
        return {"image_embeds": to_numpy(checked_embeddings(embeddings, rows * columns, self.embedding_size))}


def _name(key: str, part: str) -> str | None:
    match = _KEY.match(key)
    return match.group(2) if match and match.group(1) == part else None
