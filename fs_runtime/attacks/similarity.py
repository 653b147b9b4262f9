"""Cosine similarities of token features, the quantities that attacks raise or lower."""

from __future__ import annotations

import torch
from torch import Tensor


def token_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Mean over tokens of the cosine similarity: two ``(B, T, D)`` to ``(B,)``."""
    return torch.nn.functional.cosine_similarity(first, second, dim=-1).mean(dim=-1)


def stacked_cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity of the stacked token features: two ``(B, T, D)`` to ``(B,)``.

    With means of unit features this is cos(g(x), g(x')) of docs/guarantee.md at image granularity.
    """
    return torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1), dim=-1)
