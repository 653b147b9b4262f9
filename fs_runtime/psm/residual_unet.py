"""The purifier for photographs: a U-Net of plain convolutions that is told the noise level.

Every convolution is followed by nothing but a rectifier, as in DRUNet (Zhang et al. 2021, arXiv 2008.13751): statistics
over a picture would make what it does to one part depend on the rest, and cost as much as the convolutions on a CPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fs_runtime.psm.conditioning import FiLM, NoiseLevelEmbedding
from fs_runtime.psm.network import PsmNetwork

_CENTRE = 0.5  # of pixels in [0, 1]


@dataclass(frozen=True, slots=True)
class ResidualUNetConfig:
    """Architecture of :class:`ResidualUNetPurifier`.

    Attributes:
        channels: C of the images.
        patch: Pixels per side that the first layer folds into channels; the levels start at 1 / patch of the size.
        widths: Channels of each level; each has half the resolution of the one before.
        blocks: Residual blocks of each level, on the way down and again on the way up; the last level has them once.
        condition: Width of the noise level's embedding.
        data_std: Standard deviation of the images' pixels that the in- and output scaling assumes.
    """

    channels: int = 3
    patch: int = 2
    widths: tuple[int, ...] = (32, 64, 128, 192)
    blocks: tuple[int, ...] = (2, 2, 2, 3)
    condition: int = 64
    data_std: float = 0.25

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.blocks) or min(*self.widths, *self.blocks) < 1:
            raise ValueError(f"each level needs a width and blocks, got {self.widths} and {self.blocks}")
        for name in ("widths", "blocks"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))


# At 336 x 336 a twentieth and a quarter of the cost of CLIP ViT-L/14-336 (0.36 TFLOP).
SIZES = {
    "small": ResidualUNetConfig(),
    "large": ResidualUNetConfig(widths=(64, 128, 192), blocks=(4, 4, 6)),
}


class ResidualUNetPurifier(PsmNetwork):
    """Denoiser ``P(x, σ) = c_skip x + c_out F(c_in x, σ)`` with the scaling of Karras et al. 2022 (table 1, EDM).

    At σ = 0 it is the identity. Images of any size; the arithmetic of F is that of its weights, and the scaling is
    float32. F sees some hundred pixels around each, so what a tile or a crop shows is purified as in the whole.
    """

    kind = "residual-unet"

    def __init__(self, config: ResidualUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, condition = config.widths, config.condition
        folded = config.channels * config.patch**2
        self.embed = NoiseLevelEmbedding(condition)
        self.stem = nn.Conv2d(folded, widths[0], 3, padding=1)
        self.down = nn.ModuleList(_Level(*level, condition) for level in zip(widths, config.blocks, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(widths)
        )
        self.up = nn.ModuleList(_Level(*level, condition) for level in zip(widths[:-1], config.blocks, strict=False))
        self.head = nn.Conv2d(widths[0], folded, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None  # noqa: S101 (a convolution has one unless told otherwise)
        nn.init.zeros_(self.head.bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the convolutions are faster so

    @property
    def stride(self) -> int:
        """Sides are padded to a multiple of this, and cropped again."""
        return self.config.patch << (len(self.config.widths) - 1)

    @override
    def describe(self) -> dict[str, Any]:
        return asdict(self.config) | {name: list(getattr(self.config, name)) for name in ("widths", "blocks")}

    @classmethod
    @override
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(ResidualUNetConfig(**description))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Purifies ``(B, C, H, W)`` pixels with ``(B,)`` noise levels; the result has the dtype of ``x``."""
        level = sigma.float().view(-1, 1, 1, 1)
        std = self.config.data_std
        total = level.square() + std**2  # variance of the noisy pixels
        centred = x.float() - _CENTRE
        residual = self._residual(centred * total.rsqrt(), sigma)
        purified = centred * (std**2 / total) + residual * (level * std * total.rsqrt())
        return (purified + _CENTRE).to(x.dtype)

    def _residual(self, x: Tensor, sigma: Tensor) -> Tensor:
        """F: ``(B, C, H, W)`` of unit variance to the same shape in float32."""
        height, width = x.shape[-2:]
        padded = functional.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        condition = self.embed(sigma)
        h = functional.pixel_unshuffle(padded.to(self.stem.weight.dtype), self.config.patch)
        h = self.stem(h.contiguous(memory_format=torch.channels_last))
        kept = []
        for level, shrink in zip(self.down, [*self.shrink, None], strict=True):
            h = level(h, condition)
            if shrink is not None:
                kept.append(h)
                h = shrink(h)
        for level, grow, skip in reversed(list(zip(self.up, self.grow, kept, strict=True))):
            h = level(grow(h) + skip, condition)
        out = functional.pixel_shuffle(self.head(h), self.config.patch)
        return out[..., :height, :width].float()


class _Level(nn.Module):
    """Residual blocks at one resolution, modulated by the noise level."""

    def __init__(self, width: int, blocks: int, condition: int) -> None:
        super().__init__()
        self.film = FiLM(condition, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        h = self.film(h, condition)
        for block in self.blocks:
            h = block(h)
        return h


class _Block(nn.Module):
    """``h + W₂ max(W₁ h, 0)``. Starts as little more than the identity, so that deep networks learn from the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.conv_2.weight.mul_(0.3)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.conv_2(functional.relu(self.conv_1(h), inplace=True))
        return out
