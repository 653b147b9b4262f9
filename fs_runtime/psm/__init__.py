"""Purifier and smoothness mapper: what the smoothing pass expects of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Purifier(Protocol):
    """Denoiser before the encoder (arXiv 2601.16200, PSM). Deterministic given its input."""

    fingerprint: str

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Maps ``(B, C, H, W)`` noisy pixels and their ``(B,)`` noise levels to ``(B, C, H, W)`` pixels."""
        ...


class Mapper(Protocol):
    """Residual network after the encoder (arXiv 2601.16200, PSM). Deterministic given its input."""

    fingerprint: str

    def __call__(self, features: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps ``(B, T, D)`` token features, ``(B,)`` noise levels and the token grid to ``(B, T, D)`` features."""
        ...
