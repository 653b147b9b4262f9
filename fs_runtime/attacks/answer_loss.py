"""Losses on the answer itself, through the language model: what decides whether an attack changed it.

Under greedy decoding an answer is given exactly if each of its tokens, after the ones before it, has the largest logit.
So one token that loses its lead changes the answer: margin losses look at the one that is nearest to it, cross-entropy
at all of them.

Logits are ``(B, L, V)`` and tokens ``(B, L)``: token i is the one that logits i should be largest at, and places that
belong to no answer hold ``IGNORED``. Every loss is ``(B,)``.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100


class AnswerModel(Protocol):
    """A language model that is asked one fixed question about each image, with one fixed answer to score."""

    def __call__(self, embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the places of the answers' tokens, and these tokens.

        Args:
            embeddings: ``(B, T', D')`` of the images.
            rows: ``(B,)`` which question each is asked, with its answer.

        Returns:
            ``(B, L, V)`` logits, differentiable in ``embeddings``, and ``(B, L)`` tokens.
        """
        ...


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the answer's tokens.

    Source: Schlarmann and Hein, "On the Adversarial Robustness of Multi-Modal Foundation Models", ICCV workshops 2023
    (arXiv 2308.10741), which climbs it by APGD.
    """
    losses = functional.cross_entropy(logits.mT, tokens, ignore_index=IGNORED, reduction="none")  # (B, L)
    return losses.sum(dim=1) / (tokens != IGNORED).sum(dim=1)


def negative_cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Its negative: raising it leads to the answer."""
    return -cross_entropy(logits, tokens)


def margin_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """max_{i ≠ y} z_i - z_y of the token where it is largest: positive if another answer is given.

    Source: Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017 (arXiv 1608.04644), f₆.
    """
    return _largest(_excess(logits, tokens), tokens)


def dlr_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{i ≠ y} z_i - z_y) / (z_π1 - z_π3), of the token where it is largest.

    It changes neither with a shift nor with a scale of the logits. Source: Croce and Hein, "Reliable Evaluation of
    Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks", ICML 2020 (arXiv 2003.01690), equation
    6.
    """
    highest = logits.topk(3, dim=-1).values  # (B, L, 3)
    scale = (highest[..., 0] - highest[..., 2]).clamp_min(torch.finfo(logits.dtype).eps)
    return _largest(_excess(logits, tokens) / scale, tokens)


def _excess(logits: Tensor, tokens: Tensor) -> Tensor:
    """``(B, L)`` max_{i ≠ y} z_i - z_y."""
    wanted = tokens.clamp_min(0).unsqueeze(-1)  # (B, L, 1)
    others = logits.scatter(-1, wanted, -torch.inf).amax(dim=-1)
    return others - logits.gather(-1, wanted).squeeze(-1)


def _largest(values: Tensor, tokens: Tensor) -> Tensor:
    return values.masked_fill(tokens == IGNORED, -torch.inf).amax(dim=1)
