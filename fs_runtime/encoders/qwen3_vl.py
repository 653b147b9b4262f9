"""Qwen3-VL: learned positions, and DeepStack, which gives features of several depths to the language model."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from typing_extensions import override

from fs_runtime.encoders.base import Grid
from fs_runtime.encoders.checkpoint import Checkpoint
from fs_runtime.encoders.qwen2_vl import Qwen2VLEncoder


class Qwen3VLEncoder(Qwen2VLEncoder):
    """Vision transformer and mergers of a Qwen3-VL checkpoint; arguments and errors as :class:`Qwen2VLEncoder`.

    The language model reads the merged output of the last block, and adds those of some earlier blocks to its own first
    layers (DeepStack, arXiv 2406.04334). All of them depend on the image, so all are certified: at both stages a
    token's feature is the last block's output followed by the earlier ones. vLLM expects this layout.
    """

    family = "qwen3_vl"
    _tower_class: ClassVar[Any] = Qwen3VLVisionModel

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, device, dtype)
        self._depths = tuple(int(number) for number in self._vision.deepstack_visual_indexes)
        self.embedding_size *= 1 + len(self._depths)
        self._positions = lru_cache(maxsize=16)(self._position_embeddings)

    @override
    def encode(self, x: Tensor) -> Tensor:
        grid, h = self._embed(x)
        return torch.cat(self._blocks(h + self._positions(grid), grid, keep=self._depths), dim=-1)

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        mergers = (self._tower.merger, *self._tower.deepstack_merger_list)
        parts = features.to(self.dtype).chunk(len(mergers), dim=-1)
        merged = (self._merged(merger, part, grid) for merger, part in zip(mergers, parts, strict=True))
        return torch.cat(list(merged), dim=-1)

    def _position_embeddings(self, grid: Grid) -> Tensor:
        """``(N, D)`` learned positions, interpolated from their square to the grid with aligned corners."""
        table = self._tower.pos_embed.weight.float()  # (side², D)
        side = round(table.shape[0] ** 0.5)
        rows, columns = (_linear_weights(side, count).to(self.device) for count in grid)
        with torch.inference_mode(False), torch.no_grad():
            square = table.view(side, side, -1)
            return torch.einsum("rs,ct,std->rcd", rows, columns, square).flatten(0, 1).to(self.dtype)


def _linear_weights(side: int, count: int) -> Tensor:
    """``(count, side)`` weights of linear interpolation at ``count`` points from the first to the last of ``side``."""
    place = np.linspace(0, side - 1, count)
    weights = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(side)))
    return torch.from_numpy(weights).float()
