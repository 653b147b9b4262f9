"""Embedding of noise levels, and feature-wise modulation by them (FiLM), for purifiers and mapper."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Smaller noise levels are treated as this one, which keeps the logarithm finite at σ = 0.
_SMALLEST_SIGMA = 1e-3
_FREQUENCIES = 16


class NoiseLevelEmbedding(nn.Module):
    """``(B,)`` noise levels σ to ``(B, width)`` vectors: sines and cosines of log σ, then two linear layers.

    The logarithm is that of Karras et al. 2022 (arXiv 2206.00364, table 1, c_noise). The angles are computed in
    float32, whatever the layers' dtype.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # Periods of log σ from 2π (all levels in use lie within one) down to 2π / 16.
        self.register_buffer("frequencies", torch.logspace(0, math.log10(16), _FREQUENCIES), persistent=False)
        self.linear_1 = nn.Linear(2 * _FREQUENCIES, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sigma: Tensor) -> Tensor:
        """Embeds the noise levels."""
        angles = sigma.float().clamp_min(_SMALLEST_SIGMA).log().unsqueeze(-1) * self.frequencies.float()
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.linear_1.weight.dtype)  # (B, 32)
        embedded: Tensor = self.linear_2(nn.functional.silu(self.linear_1(waves)))
        return nn.functional.silu(embedded)


class FiLM(nn.Module):
    """Scale and shift of each channel by the noise level (Perez et al. 2018, arXiv 1709.07871). Starts as identity.

    Args:
        condition: Width of the embedding.
        channels: Channels to modulate; they are the features' second dimension.
    """

    def __init__(self, condition: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Modulates ``(B, C, …)`` features by ``(B, condition)`` embeddings."""
        shape = (features.shape[0], -1) + (1,) * (features.dim() - 2)
        scale, shift = self.linear(condition).chunk(2, dim=-1)
        modulated: Tensor = features * (1 + scale.view(shape)) + shift.view(shape)
        return modulated
