"""Base class of InternVL and Idefics3: tiles encoded separately, and pixel shuffle of a tile's tokens."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.encoders.parts import checked_embeddings, to_numpy
from fs_runtime.options import Stage
from fs_runtime.preprocessing.resize import Preprocessed


class CanvasTiling(Protocol):
    """Cuts an image into tiles of one size; if there are several, the whole image follows as one more tile."""

    def canvas(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles, from the image's size alone."""
        ...

    def __call__(self, image: NDArray[np.uint8]) -> Preprocessed:
        """``(N, C, side, side)`` pixels, and a bound of the map's spectral norm."""
        ...


class PixelShuffleEncoder(VisionEncoder):
    """Vision part with tiles and pixel shuffle; x is the stack of the tiles, and each has its own noise.

    The encoder stage gives the vision transformer's output without class tokens, tile after tile. The projector stage
    gives what the language model reads: one token for each block of merge x merge tokens.

    A grid has the rows and columns of a tile's tokens, and of the canvas' tiles. Subclasses set the attributes that are
    declared here.
    """

    _class_tokens: ClassVar[int] = 0
    _geometry: CanvasTiling
    _grid: tuple[int, int]
    _merge: int
    _tower: Any
    _projector: nn.Module
    _mean: Tensor
    _std: Tensor
    embedding_size: int

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        x = self._geometry(image)
        canvas = self._geometry.canvas(*image.shape[:2])
        return PreparedImage(torch.from_numpy(x.pixels), x.spectral_norm, (*self._grid, *canvas))

    @override
    def encode(self, x: Tensor) -> Tensor:
        pixels = ((x.float() - self._mean) / self._std).to(self.dtype)
        features: Tensor = self._tower(pixel_values=pixels).last_hidden_state
        return features[:, self._class_tokens :]

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        rows, columns, side = grid[0] // self._merge, grid[1] // self._merge, self._merge
        before, width = features.shape[:-2], features.shape[-1]
        blocks = features.to(self.dtype).reshape(-1, rows, side, columns, side, width).transpose(2, 3)
        out: Tensor = self._projector(blocks.reshape(*before, -1, side**2 * width))
        return out

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        rows, columns, down, across = grid
        side = self._merge if stage == "projector" else 1
        tiles = down * across
        return ((rows // side, columns // side),) * (tiles + int(tiles > 1))

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        tokens = sum(rows * columns for rows, columns in self.token_grids(image.grid, "projector"))
        return {"image_embeds": to_numpy(checked_embeddings(embeddings, tokens, self.embedding_size))}
