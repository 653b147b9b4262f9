"""Cuts an image into tiles of one size, with a view of the whole: a linear map and a bound of its spectral norm.

Source: LLaVA-NeXT's "anyres" (Liu et al. 2024, llava-vl.github.io/blog/2024-01-30-llava-next). The layout follows from
the image's size alone, so an attack on the pixels does not change it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers.image_processing_utils import select_best_resolution

from fs_runtime.preprocessing.resize import Filter, Preprocessed, ResizeCrop


@dataclass(frozen=True, slots=True)
class TileLayout:
    """The grid of tiles of one image.

    Attributes:
        tile_rows: Rows of tiles.
        tile_columns: Columns of tiles.
        height: Of the resized image in the middle of the tiles, in pixels; the rest is black.
        width: Likewise.
    """

    tile_rows: int
    tile_columns: int
    height: int
    width: int

    def kept_tokens(self, side: int, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens that are not padding, of ``side`` x ``side`` tokens in each tile.

        Args:
            side: Tokens along a tile.
            height: Of the client's image.
            width: Likewise.
        """
        rows, columns = self.tile_rows * side, self.tile_columns * side
        if width / height > columns / rows:
            rows -= 2 * ((rows - int(round(height * (columns / width), 7))) // 2)
        else:
            columns -= 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
        return rows, columns


@dataclass(frozen=True, slots=True)
class Tiling:
    """The whole image resized to one tile, then the tiles of the grid that fits it best.

    Attributes:
        side: Pixels along a tile.
        resolutions: Heights and widths of the grids to choose from, multiples of ``side``.
        filter: Interpolation kernel.
    """

    side: int
    resolutions: tuple[tuple[int, int], ...]
    filter: Filter = "bicubic"

    def layout(self, height: int, width: int) -> TileLayout:
        """The layout for an image of ``height`` by ``width`` pixels."""
        grid_height, grid_width = select_best_resolution((height, width), list(self.resolutions))
        fill_width, fill_height = grid_width / width, grid_height / height  # factors that fill the grid's sides
        if fill_width < fill_height:
            resized = min(math.ceil(height * fill_width), grid_height), grid_width
        else:
            resized = grid_height, min(math.ceil(width * fill_height), grid_width)
        return TileLayout(grid_height // self.side, grid_width // self.side, *resized)

    def __call__(self, image: NDArray[np.uint8]) -> Preprocessed:
        """Applies the map to one image.

        Args:
            image: ``(H, W, C)`` uint8.

        Returns:
            ``(1 + N, C, side, side)`` pixels, the whole image first and the N tiles row by row, and a bound of ‖A‖₂.

        A stacks the map A₀ to the whole image and A₁ to the resized one, so ‖Ax‖² = ‖A₀x‖² + ‖A₁x‖² and
        ‖A‖₂² ≤ ‖A₀‖₂² + ‖A₁‖₂². Cutting is a permutation of A₁'s pixels and padding adds constants.
        """
        layout = self.layout(*image.shape[:2])
        whole = ResizeCrop((self.side, self.side), None, self.filter)(image)
        resized = ResizeCrop((layout.height, layout.width), None, self.filter)(image)
        canvas = np.zeros((image.shape[2], layout.tile_rows * self.side, layout.tile_columns * self.side), np.float32)
        top, left = ((canvas.shape[1] - layout.height) // 2, (canvas.shape[2] - layout.width) // 2)
        canvas[:, top : top + layout.height, left : left + layout.width] = resized.pixels
        norm = math.hypot(whole.spectral_norm, resized.spectral_norm)
        return Preprocessed(np.concatenate([whole.pixels[None], cut(canvas, self.side)]), norm)


def tile_resolutions(pinpoints: Sequence[Sequence[int]], side: int) -> tuple[tuple[int, int], ...]:
    """Checks the grids of a configuration.

    Raises:
        ValueError: One is not made of whole tiles.
    """
    resolutions = tuple((int(height), int(width)) for height, width in pinpoints)
    if not resolutions or any(height % side or width % side for height, width in resolutions):
        raise ValueError(f"image_grid_pinpoints must be multiples of the encoder's {side} pixels, got {resolutions}")
    return resolutions


def cut(canvas: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The ``(N, C, side, side)`` tiles of a ``(C, H, W)`` picture, row by row."""
    channels, height, width = canvas.shape
    tiles = canvas.reshape(channels, height // side, side, width // side, side).transpose(1, 3, 0, 2, 4)
    return tiles.reshape(-1, channels, side, side)
