"""Base class of the convolutional purifiers: scaling by the noise level, and images of any size."""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn
from torch.nn import functional

from fs_runtime.psm.conditioning import NoiseLevelEmbedding
from fs_runtime.psm.network import PsmNetwork

_CENTRE = 0.5  # of pixels in [0, 1]


class Denoiser(PsmNetwork):
    """``P(x, σ) = c_skip x + c_out F(c_in x, σ)`` with the scaling of Karras et al. 2022 (arXiv 2206.00364, table 1).

    At σ = 0 it is the identity. F's last layer starts at zero, so an untrained purifier shrinks an image towards grey;
    this is optimal if only the image's variance is known. F runs in the dtype of its weights, the scaling in float32.

    Args:
        channels: C of the images.
        patch: Pixels per side that are folded into channels before F.
        width: Channels of F's first and last level.
        condition: Width of the noise level's embedding.
        data_std: Standard deviation of the images' pixels that the scaling assumes.
    """

    def __init__(self, channels: int, patch: int, width: int, condition: int, data_std: float) -> None:
        super().__init__()
        self._patch, self._std = patch, data_std
        self.embed = NoiseLevelEmbedding(condition)
        self.stem = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.head = nn.Conv2d(width, channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None  # noqa: S101 (a convolution has one unless told otherwise)
        nn.init.zeros_(self.head.bias)

    @property
    @abc.abstractmethod
    def stride(self) -> int:
        """Sides are padded to a multiple of this, and cropped again."""

    @abc.abstractmethod
    def _levels(self, h: Tensor, condition: Tensor) -> Tensor:
        """The part of F between its first and its last convolution; keeps ``(B, width, H / patch, W / patch)``."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Purifies ``(B, C, H, W)`` pixels with ``(B,)`` noise levels; the result has the dtype of ``x``."""
        level = sigma.float().view(-1, 1, 1, 1)
        total = level.square() + self._std**2  # variance of the noisy pixels
        centred = x.float() - _CENTRE
        residual = self._residual(centred * total.rsqrt(), sigma)
        purified = centred * (self._std**2 / total) + residual * (level * self._std * total.rsqrt())
        return (purified + _CENTRE).to(x.dtype)

    def _residual(self, x: Tensor, sigma: Tensor) -> Tensor:
        """F: ``(B, C, H, W)`` of unit variance to the same shape in float32."""
        height, width = x.shape[-2:]
        padded = functional.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        h = functional.pixel_unshuffle(padded.to(self.stem.weight.dtype), self._patch)
        h = self.stem(h.contiguous(memory_format=torch.channels_last))
        out = functional.pixel_shuffle(self.head(self._levels(h, self.embed(sigma))), self._patch)
        return out[..., :height, :width].float()
