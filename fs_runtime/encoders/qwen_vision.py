"""Qwen-VL's vision transformers over a batch of equal grids: no loop over images, few calls over windows.

The blocks are those of transformers; this module replaces the code between them. transformers packs images into one
sequence and runs attention piece by piece. Copies of one image share their grid, so here they form a batch, and so do
windows of one size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fs_runtime.encoders.base import Grid


@dataclass(frozen=True, slots=True)
class Layout:
    """Tokens of one grid in the order in which attention reads them; N tokens, heads of width d.

    Attributes:
        order: ``(N,)`` index of each token in reading order (rows, then columns); None if the tokens are in that order.
        back: ``(N,)`` the inverse of ``order``.
        cos: ``(N, 1, d)`` float32 of the rotary position embedding.
        sin: Likewise.
        windows: Runs of windows of one size, as pairs of the number of windows and the tokens in each.
    """

    order: Tensor | None
    back: Tensor | None
    cos: Tensor
    sin: Tensor
    windows: tuple[tuple[int, int], ...]


class VisionBlocks:
    """Runs the blocks of a Qwen-VL vision transformer.

    Args:
        tower: Its ``blocks`` are used, with the weights as loaded.
        heads: Attention heads.
        head_width: Width of one head, a multiple of 4.
        theta: Base of the rotary frequencies.
        window: Side in patches of the attention windows; None for attention over the whole image.
        full: Numbers of the blocks that attend over the whole image despite ``window``.
        device: Where the weights are.
    """

    def __init__(
        self,
        tower: nn.Module,
        *,
        heads: int,
        head_width: int,
        theta: float,
        window: int | None,
        full: frozenset[int],
        device: torch.device,
    ) -> None:
        self._blocks: Any = tower.blocks
        self._heads, self._head_width, self._theta = heads, head_width, theta
        self._window, self._full, self._device = window, full, device
        self.layout = lru_cache(maxsize=16)(self._layout)

    def __call__(self, h: Tensor, grid: Grid, keep: tuple[int, ...] = ()) -> list[Tensor]:
        """Applies all blocks.

        Args:
            h: ``(B, N, D)`` embedded patches in reading order.
            grid: Rows and columns; N is their product.
            keep: Numbers of further blocks whose output to return.

        Returns:
            ``(B, N, D)`` outputs of the last block and of those in ``keep``, in reading order.
        """
        layout = self.layout(grid)
        whole = ((1, h.shape[1]),)
        h = h if layout.order is None else h[:, layout.order]
        kept: dict[int, Tensor] = {}
        for number, block in enumerate(self._blocks):
            h = h + self._attend(block.attn, block.norm1(h), layout, whole if number in self._full else layout.windows)
            h = h + block.mlp(block.norm2(h))
            if number in keep:
                kept[number] = h
        outputs = [h, *(kept[number] for number in keep)]
        return outputs if layout.back is None else [output[:, layout.back] for output in outputs]

    def _attend(self, attention: Any, h: Tensor, layout: Layout, windows: tuple[tuple[int, int], ...]) -> Tensor:
        batch, tokens, _ = h.shape
        qkv = attention.qkv(h).view(batch, tokens, 3, self._heads, self._head_width)
        query, key, value = qkv.unbind(2)  # each (B, N, heads, d)
        query, key = _rotated(query, layout), _rotated(key, layout)
        mixed, start = [], 0
        for count, length in windows:
            q, k, v = (
                part[:, start : start + count * length].reshape(batch * count, length, self._heads, -1).transpose(1, 2)
                for part in (query, key, value)
            )
            out = functional.scaled_dot_product_attention(q, k, v)  # (B count, heads, length, d)
            mixed.append(out.transpose(1, 2).reshape(batch, count * length, -1))
            start += count * length
        attended: Tensor = attention.proj(torch.cat(mixed, dim=1))
        return attended

    def _layout(self, grid: Grid) -> Layout:
        rows, columns = (axis.ravel() for axis in np.indices(grid))
        order, windows = _windows(rows, columns, self._window)
        frequencies = self._theta ** -(np.arange(0, self._head_width // 2, 2) / (self._head_width // 2))
        half = np.concatenate([axis[order, None] * frequencies for axis in (rows, columns)], axis=1)
        angles = np.concatenate([half, half], axis=1)[:, None]  # (N, 1, d)
        trivial = bool((np.diff(order) == 1).all())
        # Not inference tensors: attacks use the cached tensors with gradients.
        with torch.inference_mode(False):
            return Layout(
                None if trivial else torch.from_numpy(order).to(self._device),
                None if trivial else torch.from_numpy(np.argsort(order)).to(self._device),
                torch.from_numpy(np.cos(angles)).to(self._device, torch.float32),
                torch.from_numpy(np.sin(angles)).to(self._device, torch.float32),
                windows,
            )


def _windows(
    rows: NDArray[np.int64], columns: NDArray[np.int64], side: int | None
) -> tuple[NDArray[np.int64], tuple[tuple[int, int], ...]]:
    """Order of the tokens, window by window and sorted by the windows' size, and the runs of windows of one size.

    Windows are cut from the top left; the last of a row or column may be smaller. Their order does not matter.
    """
    if side is None:
        return np.arange(len(rows)), ((1, len(rows)),)
    window = rows // side * (columns.max() // side + 1) + columns // side
    length = np.bincount(window)[window]  # of each token's window
    order = np.lexsort((window, length))
    sizes, tokens = np.unique(length, return_counts=True)
    return order, tuple((int(count // size), int(size)) for size, count in zip(sizes, tokens, strict=True))


def _rotated(x: Tensor, layout: Layout) -> Tensor:
    """Rotary position embedding of ``(B, N, heads, d)``, in float32 as in transformers."""
    wide = x.float()
    left, right = wide.chunk(2, dim=-1)
    return (wide * layout.cos + torch.cat((-right, left), dim=-1) * layout.sin).to(x.dtype)
