"""Encoders that a purifier learns from: what they see in the purified picture should be what they see in the clean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fs_runtime.encoders import VisionEncoder
from fs_runtime.training.data import SQUARE


@dataclass(frozen=True, slots=True)
class Teacher:
    """A frozen encoder.

    Attributes:
        name: As the user gave it.
        encoder: Any that is served; its projector plays no part.
        shape: ``(H, W)`` of the pictures that it reads.
    """

    name: str
    encoder: VisionEncoder
    shape: tuple[int, int]

    @classmethod
    def of(cls, name: str, encoder: VisionEncoder) -> Teacher:
        """Finds out at which size it reads a square picture, or one tile of it."""
        pixels = encoder.prepare(np.zeros((SQUARE, SQUARE, 3), np.uint8)).pixels
        return cls(name, encoder, (int(pixels.shape[-2]), int(pixels.shape[-1])))

    def features(self, x: Tensor) -> Tensor:
        """Token features ``(B, T, D)`` float32 of crops ``(B, C, H, W)`` of any size; differentiable in ``x``."""
        if tuple(x.shape[-2:]) != self.shape:
            x = functional.interpolate(x, size=self.shape, mode="bicubic", align_corners=False, antialias=True)
        return self.encoder.encode(x).float()


def feature_distance(teachers: Sequence[Teacher], purified: Tensor, clean: Tensor) -> Tensor:
    """1 - cosine of a purified and a clean picture's features: mean over tokens, pictures and teachers; a scalar.

    Differentiable in ``purified`` alone.
    """
    distances = []
    for teacher in teachers:
        with torch.no_grad():
            wanted = teacher.features(clean)
        similarity = functional.cosine_similarity(teacher.features(purified), wanted, dim=-1)
        distances.append(1 - similarity.mean())
    return torch.stack(distances).mean()
