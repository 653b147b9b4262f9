"""Losses of attacks on the answer, through the language model.

Under greedy decoding the model gives an answer exactly if each of its tokens, after those before it, has the largest
logit. So the answer changes as soon as one token's logit is no longer the largest: margin losses use the token closest
to that, cross-entropy uses all tokens.

Logits are ``(B, L, V)`` and tokens ``(B, L)``: logits i predict token i, and positions outside the answer hold
``IGNORED``. Every loss is ``(B,)``.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
_LEAD = 1.0  # κ of Carlini and Wagner


class AnswerModel(Protocol):
    """A language model that is asked one fixed question about each image, with one fixed answer to score."""

    def __call__(self, embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits at the positions of the answers' tokens, and these tokens.

        Args:
            embeddings: ``(B, T', D')`` of the images.
            rows: ``(B,)`` index of each image's question and answer.

        Returns:
            ``(B, L, V)`` logits, differentiable in ``embeddings``, and ``(B, L)`` tokens.
        """
        ...


def cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of the answer's tokens.

    Source: Schlarmann and Hein, "On the Adversarial Robustness of Multi-Modal Foundation Models", ICCV workshops 2023
    (arXiv 2308.10741), which maximises it by APGD.
    """
    losses = functional.cross_entropy(logits.mT, tokens, ignore_index=IGNORED, reduction="none")  # (B, L)
    return losses.sum(dim=1) / (tokens != IGNORED).sum(dim=1)


def negative_cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative cross-entropy: raising it makes the answer more likely."""
    return -cross_entropy(logits, tokens)


def margin_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """max_{i ≠ y} z_i - z_y at the token where it is largest; positive if the model gives another answer.

    Source: Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017 (arXiv 1608.04644), f₆.
    """
    return _largest(_excess(logits, tokens), tokens)


def dlr_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{i ≠ y} z_i - z_y) / (z_π1 - z_π3), at the token where it is largest.

    It is invariant to shifts and scales of the logits. Source: Croce and Hein, "Reliable Evaluation of
    Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks", ICML 2020 (arXiv 2003.01690), equation
    6.
    """
    highest = logits.topk(3, dim=-1).values  # (B, L, 3)
    scale = (highest[..., 0] - highest[..., 2]).clamp_min(torch.finfo(logits.dtype).eps)
    return _largest(_excess(logits, tokens) / scale, tokens)


def vote_likelihood_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Negative log of the mean probability of the answer over noisy copies: the vote's share, made differentiable.

    Args:
        logits: ``(B, n, L, V)`` of n copies of each image.
        tokens: ``(B, n, L)`` the answer.

    Source: Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed Classifiers", NeurIPS 2019
    (arXiv 1906.04584), equation 3, with answers for classes.
    """
    losses = functional.cross_entropy(logits.movedim(-1, 1), tokens, ignore_index=IGNORED, reduction="none")
    return math.log(tokens.shape[1]) - torch.logsumexp(-losses.sum(dim=-1), dim=1)


def vote_margin_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean over noisy copies of :func:`margin_loss`, up to a lead of one: copies that are turned need no more.

    Args:
        logits: ``(B, n, L, V)`` of n copies of each image.
        tokens: ``(B, n, L)`` the answer.
    """
    margins = margin_loss(logits.flatten(0, 1), tokens.flatten(0, 1)).view(tokens.shape[:2])
    return margins.clamp_max(_LEAD).mean(dim=1)


def _excess(logits: Tensor, tokens: Tensor) -> Tensor:
    """``(B, L)`` max_{i ≠ y} z_i - z_y."""
    wanted = tokens.clamp_min(0).unsqueeze(-1)  # (B, L, 1)
    others = logits.scatter(-1, wanted, -torch.inf).amax(dim=-1)
    return others - logits.gather(-1, wanted).squeeze(-1)


def _largest(values: Tensor, tokens: Tensor) -> Tensor:
    return values.masked_fill(tokens == IGNORED, -torch.inf).amax(dim=1)
