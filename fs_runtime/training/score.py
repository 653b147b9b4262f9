"""The Gaussian robustness score of a defended encoder on held-out pictures, to monitor training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fs_runtime.encoders import VisionEncoder
from fs_runtime.training.losses import robustness_loss

_BATCH = 32
_DRAWS = 2


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pictures that are not trained on.

    Attributes:
        pixels: ``(N, C, H, W)`` on the host.
        grid: Their token grid.
        seed: Of the noise, which is the same in all measurements of a run.
    """

    pixels: Tensor
    grid: tuple[int, int]
    seed: int


@torch.no_grad()
def robustness_score(
    encoder: VisionEncoder,
    held_out: HeldOut,
    sigma: float,
    purifier: nn.Module | None = None,
    mapper: nn.Module | None = None,
) -> float:
    """S = E (1 + cos(f(x), M(f(P(x + ε))))) / 2 (arXiv 2601.16200), where f(x) are the bare encoder's features.

    The cosine is that of the stacked unit tokens, which is the mean over tokens. Averages two draws for each picture.
    """
    generator = torch.Generator(encoder.device).manual_seed(held_out.seed)
    total = 0.0
    for start in range(0, len(held_out.pixels), _BATCH):
        x = held_out.pixels[start : start + _BATCH].to(encoder.device)
        level = torch.full((len(x),), sigma, device=x.device)
        clean = encoder.encode(x)
        for _ in range(_DRAWS):
            noisy = x + sigma * torch.empty_like(x).normal_(generator=generator)
            features = encoder.encode(purifier(noisy, level) if purifier else noisy)
            if mapper:
                features = mapper(features, level, held_out.grid)
            total += len(x) * (1 - 0.5 * float(robustness_loss(features, clean)))
    return total / (_DRAWS * len(held_out.pixels))
