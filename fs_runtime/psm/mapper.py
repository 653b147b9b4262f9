"""The Smoothness Mapper: a residual network over the encoder's tokens and the noise level (arXiv 2601.16200)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fs_runtime.psm.conditioning import FiLM, NoiseLevelEmbedding
from fs_runtime.psm.network import PsmNetwork


@dataclass(frozen=True, slots=True)
class MapperConfig:
    """Architecture of :class:`SmoothnessMapper`.

    Attributes:
        features: D, width of the encoder's tokens.
        width: Hidden width, a multiple of ``heads``.
        blocks: Number of blocks.
        heads: Attention heads.
        condition: Width of the noise level's embedding.
    """

    features: int
    width: int = 128
    blocks: int = 2
    heads: int = 4
    condition: int = 32

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % self.heads:
            raise ValueError(f"mapper width {self.width} is not a multiple of {self.heads}, the number of heads")


class SmoothnessMapper(PsmNetwork):
    """``M(z, σ) = z + s ⊙ R((z − m) / s, σ)`` with the clean features' mean m and standard deviation s per channel.

    The last layer of R starts at zero, so an untrained mapper is the identity. It accepts any token grid. The
    convolution skips tokens before the grid (a class token).
    """

    kind = "mapper"
    mean: Tensor
    std: Tensor

    def __init__(self, config: MapperConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.features))
        self.register_buffer("std", torch.ones(config.features))
        self.embed = NoiseLevelEmbedding(config.condition)
        self.enter = nn.Linear(config.features, config.width)
        self.blocks = nn.ModuleList(_MapperBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.leave = nn.Linear(config.width, config.features)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @override
    def describe(self) -> dict[str, Any]:
        return asdict(self.config)

    @classmethod
    @override
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(MapperConfig(**description))

    @torch.no_grad()
    def calibrate(self, features: Tensor) -> None:
        """Sets m and s to the statistics of ``(B, T, D)`` clean features."""
        std, mean = torch.std_mean(features.float(), dim=(0, 1))
        self.mean.copy_(mean)
        # A lower bound, so that noise in a nearly constant channel is not amplified.
        self.std.copy_(std.clamp_min(1e-2 * float(std.mean())))

    def forward(self, features: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps ``(B, T, D)`` token features with ``(B,)`` noise levels to ``(B, T, D)`` of the same dtype.

        Raises:
            ValueError: There are fewer tokens than grid positions.
        """
        if features.shape[1] < grid[0] * grid[1]:
            raise ValueError(f"{features.shape[1]} tokens do not fill a grid of {grid[0]} x {grid[1]}")
        z = features.float()
        dtype = self.enter.weight.dtype
        condition = self.embed(sigma)
        h = self.enter(((z - self.mean.float()) / self.std.float()).to(dtype))  # (B, T, width)
        for block in self.blocks:
            h = block(h, condition, grid)
        residual = self.leave(self.norm(h)).float() * self.std.float()
        mapped: Tensor = (z + residual).to(features.dtype)
        return mapped


class _MapperBlock(nn.Module):
    """Attention over all tokens, depth-wise convolution over the grid, and an MLP, each modulated and residual."""

    def __init__(self, config: MapperConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_1 = nn.LayerNorm(width)
        self.film_1 = FiLM(config.condition, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm_2 = nn.LayerNorm(width)
        self.film_2 = FiLM(config.condition, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        inner = self._modulate(self.film_1, self.norm_1(h), condition)
        h = h + self._attend(inner) + self._convolve(inner, grid)
        out: Tensor = h + self.mlp(self._modulate(self.film_2, self.norm_2(h), condition))
        return out

    @staticmethod
    def _modulate(film: nn.Module, h: Tensor, condition: Tensor) -> Tensor:
        modulated: Tensor = film(h.mT, condition).mT
        return modulated

    def _attend(self, h: Tensor) -> Tensor:
        batch, tokens, width = h.shape
        qkv = self.qkv(h).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, width / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.attended(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out

    def _convolve(self, h: Tensor, grid: tuple[int, int]) -> Tensor:
        places = grid[0] * grid[1]
        before = h.shape[1] - places
        picture = h[:, before:].mT.contiguous().view(h.shape[0], h.shape[2], *grid)  # (B, width, rows, columns)
        local: Tensor = self.local(picture).flatten(2).mT
        return functional.pad(local, (0, 0, before, 0)) if before else local
