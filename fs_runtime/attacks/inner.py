"""The inner maximisation of adversarial training: where features lie farthest from the clean ones, by some PGD steps.

Sources: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018 (arXiv 1706.06083);
the distance is that of Schlarmann, Singh, Croce and Hein, "Robust CLIP", ICML 2024 (arXiv 2402.12336), equation 3;
replays are those of Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019 (arXiv 1904.12843).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fs_runtime.attacks.ascent import first_step, pgd
from fs_runtime.attacks.threat_model import ThreatModel


def feature_distance(features: Tensor, clean: Tensor) -> Tensor:
    """``(B,)`` squared distances, means over tokens, of ``(B, T, D)`` features from the clean ones."""
    return (features.float() - clean.float()).square().sum(dim=-1).mean(dim=-1)


def worst_case(
    features: Callable[[Tensor], Tensor], x: Tensor, clean: Tensor, start: Tensor, threat: ThreatModel, steps: int
) -> Tensor:
    """Images of the ball whose features are as far from the clean ones as PGD finds.

    Args:
        features: From ``(B, C, H, W)`` images to ``(B, T, D)`` features; the same at every call.
        x: ``(B, C, H, W)`` clean images.
        clean: ``(B, T, D)`` what the distance is measured from.
        start: ``(B, C, H, W)`` points of the ball.
        threat: The ball.
        steps: Of PGD.

    Returns:
        ``(B, C, H, W)`` images, without a graph.
    """

    def objective(point: Tensor) -> tuple[Tensor, Tensor]:
        leaf = point.detach().requires_grad_()
        value = feature_distance(features(leaf), clean)
        return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]

    return pgd(objective, start, x, threat, steps=steps, step_size=first_step(steps), momentum=0, keep_best=False)


def replays(x: Tensor, start: Tensor, threat: ThreatModel, count: int) -> Iterator[Tensor]:
    """Images of the ball to train on, each a step of ε further up the loss of the one before.

    The step follows the gradient that the caller's backward pass left in the image, the same pass that the weights are
    updated by, so it costs nothing.

    Args:
        x: ``(B, C, H, W)`` clean images.
        start: ``(B, C, H, W)`` points of the ball, the first to be trained on.
        threat: The ball.
        count: How many images each becomes.

    Yields:
        ``(B, C, H, W)`` images, which gather a gradient if another one follows.
    """
    point = start
    for left in reversed(range(count)):
        point = point.detach().requires_grad_(left > 0)
        yield point
        if point.grad is not None:
            point = threat.project(point.detach() + threat.epsilon * threat.steepest(point.grad), x)
