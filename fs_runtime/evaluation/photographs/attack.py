"""Attacks on photographs: on the class where it is known, else on the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from fs_runtime.attacks import ATTACKS, Attack, FeaturePipeline, ThreatModel, run_attack
from fs_runtime.encoders import PreparedImage
from fs_runtime.smoothing.smoother import Smoother

ON_CLASS, ON_FEATURES = "apgd-ce", "apgd"


class HeadAnswers:
    """A classifier's head as the model whose answers are attacked: an answer is one token, the class.

    Args:
        labels: The right class of each picture.
        device: Of the logits.
    """

    def __init__(self, labels: Sequence[int], device: torch.device) -> None:
        self._labels = torch.tensor(labels, device=device)

    def __call__(self, embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 1, classes)`` logits, which are the embeddings, and the ``(B, 1)`` right classes."""
        return embeddings, self._labels[rows].unsqueeze(-1)


def attack_on(labels: Sequence[int] | None, steps: int) -> Attack:
    """APGD: up the cross-entropy of the class, or away from the features where no class is known."""
    return ATTACKS[ON_CLASS if labels is not None else ON_FEATURES](steps=steps)


def attack_pictures(
    smoother: Smoother,
    sigma: float,
    images: Sequence[PreparedImage],
    ball: ThreatModel,
    *,
    labels: Sequence[int] | None,
    steps: int,
    draws: int,
    seed: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> list[Tensor]:
    """Attacks pictures through purifier, noise and encoder (expectation over transformation).

    Args:
        smoother: What is attacked.
        sigma: σ of its noise; 0 for the encoder without smoothing.
        images: The pictures; those of one shape that follow one another are attacked together.
        ball: Around each of them.
        labels: Their classes; None to attack the features.
        steps: Gradient steps.
        draws: Fresh noisy copies behind each gradient.
        seed: Of random starts and noise.
        batch_size: Most noisy copies in one pass with gradients.
        advance: Called after each gradient with the number of copies behind it.

    Returns:
        The pixels of each attacked picture, on the host.
    """
    attack = attack_on(labels, steps)
    found: list[Tensor] = []
    for (_, grid), group in groupby(images, key=lambda image: (image.pixels.shape, image.grid)):
        together = torch.stack([image.pixels for image in group]).to(smoother.encoder.device)
        own = labels[len(found) : len(found) + len(together)] if labels is not None else None
        pipeline = FeaturePipeline(smoother, sigma, grid, draws=draws, seed=seed, batch_size=batch_size)
        copies = len(together) * pipeline.draws
        attacked = run_attack(
            attack,
            [pipeline],
            together,
            ball,
            answers=None if own is None else HeadAnswers(own, together.device),
            seed=seed,
            report=partial(advance, copies),
        )
        found += list(attacked.cpu())
    return found
