"""The losses of purifier and mapper (arXiv 2601.16200, PSM).

L_P = l_diff + λ₁ l_rb + λ₂ l_mse and L_M = l_rb + λ₃ l_stats + λ₄ l_id.

x is the clean image, ε ~ N(0, σ² I) the noise, f the encoder, P the purifier, M the mapper. Every function returns a
scalar. Pixels are in [0, 1], ``(B, C, H, W)``; features are ``(B, T, D)``; noise levels are ``(B,)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LossWeights:
    """The weights λ of the two losses.

    Attributes:
        purifier_robustness: λ₁, of l_rb in L_P.
        purifier_distance: λ₂, of l_mse in L_P.
        mapper_statistics: λ₃, of l_stats in L_M.
        mapper_identity: λ₄, of l_id in L_M.
        attack: λ₅, of the squared distance that attacks maximise, in both losses of adversarial training.
    """

    purifier_robustness: float = 10.0
    purifier_distance: float = 0.01
    mapper_statistics: float = 1.0
    mapper_identity: float = 1.0
    attack: float = 10.0


def diffusion_loss(purified: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """l_diff: mean square error of the noise that the purifier implies.

    With x̃ = x + ε and ε̂ = x̃ − P(x̃), it is E (ε̂ − ε)² / σ² per pixel: the loss of denoising diffusion (Ho et al. 2020,
    equation 14), since there ε̂ / σ is what the network predicts.
    """
    error = (purified.float() - clean.float()) / sigma.float().view(-1, 1, 1, 1)
    return error.square().mean()


def distance_loss(purified: Tensor, clean: Tensor) -> Tensor:
    """l_mse = E ‖x − P(x + ε)‖, the ℓ2 norm of an image's error."""
    error = (purified.float() - clean.float()).flatten(1)
    # The square root has no gradient at 0.
    return (error.square().sum(1) + torch.finfo(torch.float32).tiny).sqrt().mean()


def robustness_loss(features: Tensor, clean: Tensor) -> Tensor:
    """l_rb = 1 − E cos(f̃, f): the features are stacked unit tokens, so it is the mean over the tokens."""
    return 1 - functional.cosine_similarity(features.float(), clean.float(), dim=-1).mean()


def statistics_loss(features: Tensor, clean: Tensor, average: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
    """l_stats = Σ_d (μ̂_d − μ_d)² + (σ̂_d − σ_d)², over the batch's tokens; d counts the feature channels.

    It is not a sum over pictures, so processes that share a batch need the moments of the whole batch.

    Args:
        features: Of this process's pictures.
        clean: Clean features of the same pictures.
        average: Mean of a tensor over the processes, with gradients.
    """
    tokens = torch.stack([features.float(), clean.float()]).flatten(1, -2)  # (2, B T, D)
    mean = average(tokens.mean(1))
    variance = average((tokens - mean.unsqueeze(1)).square().mean(1))
    # The square root has no gradient at 0, the variance of a constant channel.
    std = variance.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    return (mean[0] - mean[1]).square().sum() + (std[0] - std[1]).square().sum()


def identity_loss(mapped: Tensor, clean: Tensor) -> Tensor:
    """l_id = E ‖M(z, 0) − z‖², the mean over the tokens, for z = f(x) and ``mapped`` = M(z, 0)."""
    return (mapped.float() - clean.float()).square().sum(-1).mean()


def purifier_loss(
    purified: Tensor, clean: Tensor, sigma: Tensor, features: Tensor, clean_features: Tensor, weights: LossWeights
) -> Tensor:
    """L_P for purified pixels, their features f(P(x + ε)) and the clean ones f(x)."""
    return (
        diffusion_loss(purified, clean, sigma)
        + weights.purifier_robustness * robustness_loss(features, clean_features)
        + weights.purifier_distance * distance_loss(purified, clean)
    )


def mapper_loss(
    mapped: Tensor,
    mapped_clean: Tensor,
    clean: Tensor,
    weights: LossWeights,
    average: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:
    """L_M for M(f(P(x + ε)), σ), M(f(x), 0) and f(x); ``average`` as for :func:`statistics_loss`."""
    return (
        robustness_loss(mapped, clean)
        + weights.mapper_statistics * statistics_loss(mapped, clean, average)
        + weights.mapper_identity * identity_loss(mapped_clean, clean)
    )
