"""The compact purifier: a small U-Net conditioned on the noise level (arXiv 2601.16200, the ablation's light one)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from fs_runtime.psm.conditioning import FiLM
from fs_runtime.psm.denoiser import Denoiser

_GROUP_SIZE = 8  # channels that are normalised together


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """Architecture of :class:`UNetPurifier`.

    Attributes:
        channels: C of the images.
        patch: Pixels per side that the first layer folds into channels; the levels start at 1 / patch of the size.
        widths: Channels of each level, multiples of 8; each level has half the resolution of the one before.
        condition: Width of the noise level's embedding.
        data_std: Standard deviation of the images' pixels that the in- and output scaling assumes.
    """

    channels: int = 3
    patch: int = 2
    widths: tuple[int, ...] = (32, 64, 128)
    condition: int = 64
    data_std: float = 0.25

    def __post_init__(self) -> None:
        if not self.widths or any(width % _GROUP_SIZE or width < 1 for width in self.widths):
            raise ValueError(f"widths must be positive multiples of {_GROUP_SIZE}, got {self.widths}")
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON gives a list


class UNetPurifier(Denoiser):
    """Denoiser of images of any size."""

    kind = "unet"

    def __init__(self, config: UNetConfig) -> None:
        widths = config.widths
        super().__init__(config.channels, config.patch, widths[0], config.condition, config.data_std)
        self.config = config
        self.down = nn.ModuleList(_UNetBlock(width, width, config.condition) for width in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairwise(widths))
        self.middle = nn.ModuleList(_UNetBlock(widths[-1], widths[-1], config.condition) for _ in range(2))
        self.grow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in pairwise(widths))
        self.up = nn.ModuleList(_UNetBlock(2 * width, width, config.condition) for width in widths[:-1])
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the convolutions are faster so

    @property
    @override
    def stride(self) -> int:
        return self.config.patch << (len(self.config.widths) - 1)

    @override
    def describe(self) -> dict[str, Any]:
        return asdict(self.config) | {"widths": list(self.config.widths)}

    @classmethod
    @override
    def from_description(cls, description: dict[str, Any]) -> Self:
        return cls(UNetConfig(**description))

    @override
    def _levels(self, h: Tensor, condition: Tensor) -> Tensor:
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            h = block(h, condition)
            kept.append(h)
            h = shrink(h)
        for block in self.middle:
            h = block(h, condition)
        for block, grow, skip in _reversed(self.up, self.grow, kept):
            h = functional.interpolate(grow(h), scale_factor=2.0, mode="nearest")
            h = block(torch.cat([h, skip], dim=1), condition)
        return functional.silu(h)


class _UNetBlock(nn.Module):
    """Two convolutions with a skip connection, modulated by the noise level."""

    def __init__(self, inputs: int, outputs: int, condition: int) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(inputs // _GROUP_SIZE, inputs)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm_2 = nn.GroupNorm(outputs // _GROUP_SIZE, outputs)
        self.film = FiLM(condition, outputs)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.around = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        inner = self.conv_1(functional.silu(self.norm_1(h)))
        inner = self.conv_2(functional.silu(self.film(self.norm_2(inner), condition)))
        out: Tensor = self.around(h) + inner
        return out


def _reversed(
    blocks: nn.ModuleList, grows: nn.ModuleList, kept: Sequence[Tensor]
) -> list[tuple[nn.Module, nn.Module, Tensor]]:
    """Blocks, enlarging layers and kept features from the coarsest level up."""
    return list(zip(blocks, grows, kept, strict=True))[::-1]
