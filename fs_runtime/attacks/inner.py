"""The inner maximisation of adversarial training: PGD on the distance of features from the clean ones.

Sources: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018 (arXiv 1706.06083);
the distance is that of Schlarmann, Singh, Croce and Hein, "Robust CLIP", ICML 2024 (arXiv 2402.12336), equation 3;
replays are those of Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019 (arXiv 1904.12843).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fs_runtime.attacks.ascent import first_step_size, pgd
from fs_runtime.attacks.threat_model import ThreatModel


def feature_distance(features: Tensor, clean: Tensor) -> Tensor:
    """``(B,)`` squared distances of ``(B, T, D)`` features from the clean ones, averaged over tokens."""
    return (features.float() - clean.float()).square().sum(dim=-1).mean(dim=-1)


def worst_case(
    features: Callable[[Tensor], Tensor], x: Tensor, clean: Tensor, start: Tensor, threat: ThreatModel, steps: int
) -> Tensor:
    """Images in the ball that PGD finds by maximising the distance of their features from the clean ones.

    Args:
        features: Maps ``(B, C, H, W)`` images to ``(B, T, D)`` features; deterministic.
        x: ``(B, C, H, W)`` clean images.
        clean: ``(B, T, D)`` clean features.
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

    return pgd(objective, start, x, threat, steps=steps, step_size=first_step_size(steps), momentum=0, keep_best=False)


def replays(x: Tensor, start: Tensor, threat: ThreatModel, count: int) -> Iterator[Tensor]:
    """Yields images to train on; each is the one before after another ascent step of size ε on the loss.

    The step uses the image's gradient from the caller's backward pass, which the update of the weights needs anyway, so
    it costs no further pass.

    Args:
        x: ``(B, C, H, W)`` clean images.
        start: ``(B, C, H, W)`` points of the ball, yielded first.
        threat: The ball.
        count: Number of images to yield for each image of ``x``.

    Yields:
        ``(B, C, H, W)`` images, which require gradients, except for the last.
    """
    point = start
    for left in reversed(range(count)):
        point = point.detach().requires_grad_(left > 0)
        yield point
        if point.grad is not None:
            point = threat.project(point.detach() + threat.epsilon * threat.steepest(point.grad), x)
