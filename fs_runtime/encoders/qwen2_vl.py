"""Qwen2-VL, and the base class of the later Qwen-VL families: any resolution, patches merged two by two."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
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
from fs_runtime.encoders.qwen_vision import VisionBlocks
from fs_runtime.encoders.smart_resize import SmartResize
from fs_runtime.options import Stage

# On disk: `visual.…`, or `model.visual.…` as transformers 5 saves it.
_TOWER_KEY = re.compile(r"^(?:model\.)?visual\.(.+)$")
_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


class Qwen2VLEncoder(VisionEncoder):
    """Vision transformer and merger of a Qwen2-VL checkpoint.

    The encoder stage gives what the merger reads: one feature for each patch, in reading order. The projector stage
    gives what the language model reads: one for each block of merge x merge patches. This family treats a still image
    as a video of two equal frames: noise is added once, and both frames show the same noisy image.

    Args:
        checkpoint: Where the weights are.
        device: Where to put them.
        dtype: Arithmetic of tower and merger.

    Raises:
        CheckpointError: The checkpoint is not of this family, or is incomplete.
    """

    family = "qwen2_vl"
    _tower_class: ClassVar[Any] = Qwen2VisionTransformerPretrainedModel

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        config = AutoConfig.for_model(**raw)
        self._vision = vision = config.vision_config
        self.device, self.dtype = device, dtype
        self._patch, self._merge = int(vision.patch_size), int(vision.spatial_merge_size)
        processor = processor_config(checkpoint)
        try:
            self._geometry = SmartResize.from_processor_config(processor, self._patch, self._merge)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        mean, std = mean_and_std(processor)
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}

        with torch.device("meta"):
            tower = self._tower_class._from_config(vision, dtype=torch.float32)
        tower.rotary_pos_emb = nn.Identity()  # its values are computed for a whole grid at once (qwen_vision.py)
        load_weights(tower, checkpoint.tensors(_tower_name), "vision tower")
        self.fingerprint = fingerprint({"config": raw, "preprocessing": self.preprocessing}, tower)
        # Both frames are equal, so the kernel can be summed over time.
        embed = tower.patch_embed.proj
        self._embed_weight = embed.weight.sum(2).flatten(1).to(device, dtype)  # (D, C P P)
        self._embed_bias = None if embed.bias is None else embed.bias.to(device, dtype)
        tower.patch_embed = nn.Identity()
        self._tower: Any = frozen(tower, device, dtype)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self._blocks = self._vision_blocks(vision)
        self.embedding_size = self.language_width = int(config.text_config.hidden_size)
        self.control_tokens = tuple(
            special_token_text(checkpoint, getattr(config, name, -1), usual) for name, usual in _TOKENS.items()
        )

    @override
    def cap(self, max_pixels: int) -> None:
        self._geometry = self._geometry.capped(max_pixels)
        self.preprocessing |= dataclasses.asdict(self._geometry)

    def _vision_blocks(
        self, vision: PreTrainedConfig, window: int | None = None, full: tuple[int, ...] = ()
    ) -> VisionBlocks:
        heads = int(vision.num_heads)
        rope = getattr(vision, "rope_parameters", None) or {}
        return VisionBlocks(
            self._tower,
            heads=heads,
            head_width=int(getattr(vision, "embed_dim", vision.hidden_size)) // heads,
            theta=float(rope.get("rope_theta", 10000.0)),
            window=window,
            full=frozenset(full),
            device=self.device,
        )

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        x = self._geometry(image)
        rows, columns = (side // self._patch for side in x.pixels.shape[1:])
        return PreparedImage(torch.from_numpy(x.pixels), x.spectral_norm, (rows, columns))

    @override
    def encode(self, x: Tensor) -> Tensor:
        grid, h = self._embed(x)
        return self._blocks(h, grid)[0]

    def _embed(self, x: Tensor) -> tuple[Grid, Tensor]:
        """Normalises ``(B, C, H, W)`` pixels and embeds their patches; the grid and ``(B, N, D)`` in reading order."""
        pixels = ((x.float() - self._mean) / self._std).to(self.dtype)
        side = self._patch
        grid = (pixels.shape[2] // side, pixels.shape[3] // side)
        patches = functional.pixel_unshuffle(pixels, side).flatten(2).mT  # (B, N, C P P)
        return grid, functional.linear(patches, self._embed_weight, self._embed_bias)

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        side = self._merge if stage == "projector" else 1
        return ((grid[0] // side, grid[1] // side),)

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        return self._merged(self._tower.merger, features.to(self.dtype), grid)

    def _merged(self, merger: nn.Module, features: Tensor, grid: Grid) -> Tensor:
        """Merger: ``(…, N, D)`` in reading order to ``(…, N / merge², D')``."""
        side = self._merge
        rows, columns = grid[0] // side, grid[1] // side
        before, width = features.shape[:-2], features.shape[-1]
        blocks = features.reshape(-1, rows, side, columns, side, width).transpose(2, 3)
        out: Tensor = merger(blocks.reshape(-1, width).contiguous())  # one row for each block of merge² rows
        return out.view(*before, rows * columns, -1)

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        rows, columns = image.grid
        if rows % self._merge or columns % self._merge or min(rows, columns) < 1:
            raise ValueError(f"a grid of {rows} x {columns} patches does not divide into blocks of {self._merge}")
        tokens = rows * columns // self._merge**2
        return {
            "image_embeds": to_numpy(checked_embeddings(embeddings, tokens, self.embedding_size)),
            "image_grid_thw": np.array([1, rows, columns], dtype=np.int64),
        }


def _tower_name(key: str) -> str | None:
    match = _TOWER_KEY.match(key)
    return match.group(1) if match else None
