"""LLaVA-OneVision: LLaVA-NeXT's tiles with a SigLIP tower, and fewer tokens where there are many tiles."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig
from typing_extensions import override

from fs_runtime.encoders.base import Grid
from fs_runtime.encoders.llava_next import LlavaNextEncoder
from fs_runtime.options import Stage
from fs_runtime.preprocessing.tiling import Tiling

_RATIO = 1.1  # above it, tokens are pooled (Li et al. 2024, arXiv 2408.03326, "Higher AnyRes")


class LlavaOnevisionEncoder(LlavaNextEncoder):
    """Vision tower, projector and newline token of a LLaVA-OneVision checkpoint.

    As in LLaVA-NeXT. After the projector, the tiles' tokens are pooled bilinearly to about as many as ``anyres_max_N``
    tiles have, so the projector stage has fewer tokens than the encoder stage. Every image of a request is cut into
    tiles, as in vLLM.
    """

    family = "llava_onevision"

    @override
    def _read_geometry(self, processor: dict[str, Any], config: PreTrainedConfig) -> Tiling:
        aspect, _, count = str(config.vision_aspect_ratio).rpartition("_")
        if aspect != "anyres_max" or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"vision_aspect_ratio must be anyres_max_<number>, got {config.vision_aspect_ratio}")
        self._max_tiles = int(count)
        return super()._read_geometry({"do_center_crop": False} | processor, config)

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        projected = super().project(features, grid)
        whole, tiles = self.token_grids(grid, "encoder")
        pooled = self._pooled(*tiles)
        if pooled == tiles:
            return projected
        count = whole[0] * whole[1]
        lead, width = projected.shape[:-2], projected.shape[-1]
        picture = projected[..., count:, :].reshape(-1, *tiles, width).permute(0, 3, 1, 2)  # (B, D', rows, columns)
        picture = functional.interpolate(picture, pooled, mode="bilinear")
        rest = picture.permute(0, 2, 3, 1).reshape(*lead, pooled[0] * pooled[1], width)
        return torch.cat([projected[..., :count, :], rest], dim=-2)

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        whole, tiles = super().token_grids(grid, stage)
        return whole, (tiles if stage == "encoder" else self._pooled(*tiles))

    def _pooled(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of the tiles' tokens after pooling."""
        ratio = math.sqrt(rows * columns / (self._max_tiles * self._grid[0] ** 2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > _RATIO else (rows, columns)
