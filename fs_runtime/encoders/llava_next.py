"""LLaVA-NeXT (LLaVA-1.6): the tower of LLaVA-1.5 over the whole image and over tiles, newlines between rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedConfig
from typing_extensions import override

from fs_runtime.encoders.base import Grid, PreparedImage
from fs_runtime.encoders.llava import LlavaEncoder
from fs_runtime.encoders.parts import checked_embeddings, to_numpy
from fs_runtime.options import Stage
from fs_runtime.preprocessing.resize import ResizeCrop
from fs_runtime.preprocessing.tiling import Tiling, tile_resolutions


class LlavaNextEncoder(LlavaEncoder):
    """Vision tower, projector and newline token of a LLaVA-NeXT checkpoint.

    x is the stack of the whole image, resized to one tile, and the tiles; each has its own noise. f has the tokens that
    the language model reads: those of the whole image, then those of the tiles row by row, without padding. The newline
    token is a constant, so it is not part of f; the payload adds it.

    A grid has the rows and columns of a tile's tokens, of the tiles, and of the tokens that are kept of all tiles.
    """

    family = "llava_next"
    _constant_names = ("image_newline",)

    @override
    def _read_geometry(self, processor: dict[str, Any], config: PreTrainedConfig) -> Tiling:
        side = config.vision_config.image_size
        resize_crop = ResizeCrop.from_processor_config(processor | {"do_pad": False})
        if resize_crop.resize not in (side, (side, side)) or resize_crop.crop not in (None, (side, side)):
            raise ValueError(f"preprocessor_config.json must resize and crop to the encoder's {side} pixels")
        pinpoints = processor.get("image_grid_pinpoints") or config.image_grid_pinpoints
        if [list(pair) for pair in pinpoints] != [list(pair) for pair in config.image_grid_pinpoints]:
            raise ValueError("preprocessor_config.json and config.json differ in image_grid_pinpoints")
        self._tiling = Tiling(side, tile_resolutions(pinpoints, side), resize_crop.filter)
        return self._tiling

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        x = self._tiling(image)
        layout = self._tiling.layout(*image.shape[:2])
        kept = layout.kept_tokens(self._grid[0], *image.shape[:2])
        grid = (*self._grid, layout.tile_rows, layout.tile_columns, *kept)
        return PreparedImage(torch.from_numpy(x.pixels), x.spectral_norm, grid)

    @override
    def assemble(self, features: Tensor, grid: Grid) -> Tensor:
        rows, columns, down, across, *kept = grid
        whole, tiles = features[..., 0, :, :], features[..., 1:, :, :]
        lead, width = tiles.shape[:-3], tiles.shape[-1]
        tiles = tiles.reshape(*lead, down, across, rows, columns, width).transpose(-4, -3)  # (…, down, rows, across, …)
        tiles = tiles.reshape(*lead, down * rows, across * columns, width)
        top, left = (down * rows - kept[0]) // 2, (across * columns - kept[1]) // 2
        tiles = tiles[..., top : top + kept[0], left : left + kept[1], :]
        return torch.cat([whole, tiles.flatten(-3, -2)], dim=-2)

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        rows, columns, _, _, kept_rows, kept_columns = grid
        return (rows, columns), (kept_rows, kept_columns)

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        (rows, columns), tiles = self.token_grids(image.grid, "projector")
        counts = [rows * columns, tiles[0] * tiles[1]]
        whole, rest = torch.split(checked_embeddings(embeddings, sum(counts), self.embedding_size), counts)
        newline = self._constants["image_newline"].to(rest).expand(tiles[0], 1, -1)
        rest = torch.cat([rest.view(*tiles, self.embedding_size), newline], dim=1)  # (rows, columns + 1, D')
        return {"image_embeds": to_numpy(torch.cat([whole, rest.flatten(0, 1)]))}
