"""The purifier for photographs: a U-Net of plain convolutions, conditioned on the noise level.

Like DRUNet (Zhang et al. 2021, arXiv 2008.13751) it has rectifiers but no normalisation layers. Statistics over a
picture would make the output at one place depend on the whole picture, and cost as much as the convolutions on a CPU.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from operator import lt
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fs_runtime.psm.conditioning import FiLM
from fs_runtime.psm.denoiser import Denoiser


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


# At 336 x 336 they cost 1/24 and 1/10 of CLIP ViT-L/14-336 (0.36 TFLOP). Their widths are equal, so that the small
# one can grow into the large one.
SIZES = {
    "small": ResidualUNetConfig(),
    "large": ResidualUNetConfig(blocks=(6, 6, 4, 3)),
}


class ResidualUNetPurifier(Denoiser):
    """Denoiser of images of any size.

    F's receptive field is about a hundred pixels, so a tile or a crop is purified like that part of the whole image.
    """

    kind = "residual-unet"

    def __init__(self, config: ResidualUNetConfig) -> None:
        widths, condition = config.widths, config.condition
        super().__init__(config.channels, config.patch, widths[0], condition, config.data_std)
        self.config = config
        self.down = nn.ModuleList(_Level(*level, condition) for level in zip(widths, config.blocks, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(_Level(*level, condition) for level in zip(widths[:-1], config.blocks, strict=False))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the convolutions are faster so

    @property
    @override
    def stride(self) -> int:
        return self.config.patch << (len(self.config.widths) - 1)

    @override
    def describe(self) -> dict[str, Any]:
        return asdict(self.config) | {name: list(getattr(self.config, name)) for name in ("widths", "blocks")}

    @classmethod
    @override
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(ResidualUNetConfig(**description))

    def grown(self, config: ResidualUNetConfig) -> Self:
        """The same function in a network with more blocks; the new blocks are the identity until they are trained.

        Args:
            config: Differs from this network's in its blocks only, and has no level with fewer.

        Raises:
            ValueError: ``config`` is not a deeper version of this network.
        """
        mine = self.config
        if replace(config, blocks=mine.blocks) != mine or any(map(lt, config.blocks, mine.blocks)):
            raise ValueError(f"a purifier with {mine} cannot grow into one with {config}")
        deeper = type(self)(config)
        deeper.load_state_dict(self.state_dict(), strict=False)  # existing blocks keep their indices
        for levels in ("down", "up"):
            for level, of_mine in zip(getattr(deeper, levels), getattr(self, levels), strict=True):
                for block in level.blocks[len(of_mine.blocks) :]:
                    nn.init.zeros_(block.conv_2.weight)
                    nn.init.zeros_(block.conv_2.bias)
        return deeper

    @override
    def _levels(self, h: Tensor, condition: Tensor) -> Tensor:
        kept = []
        for level, shrink in zip(self.down, [*self.shrink, None], strict=True):
            h = level(h, condition)
            if shrink is not None:
                kept.append(h)
                h = shrink(h)
        for level, grow, skip in reversed(list(zip(self.up, self.grow, kept, strict=True))):
            h = level(grow(h) + skip, condition)
        return h


class _Level(nn.Module):
    """Residual blocks at one resolution, modulated by the noise level."""

    def __init__(self, width: int, blocks: int, condition: int) -> None:
        super().__init__()
        self.film = FiLM(condition, width)
        self.blocks = nn.ModuleList(_ResidualBlock(width) for _ in range(blocks))

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        h = self.film(h, condition)
        for block in self.blocks:
            h = block(h)
        return h


class _ResidualBlock(nn.Module):
    """``h + W₂ max(W₁ h, 0)``. Starts close to the identity, so that deep networks train well from the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.conv_2.weight.mul_(0.3)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = h + self.conv_2(functional.relu(self.conv_1(h), inplace=True))
        return out
