"""PGD and APGD: gradient ascent within a threat model, for a batch of images at once.

Sources: Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018 (arXiv 1706.06083);
Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
ICML 2020 (arXiv 2003.01690), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fs_runtime.attacks.threat_model import ThreatModel

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps ``(B, C, H, W)`` images to ``(B,)`` values to maximise and their ``(B, C, H, W)`` gradients."""

_MOMENTUM = 0.75  # α of the paper: weight of the new step
_RISING_SHARE = 0.75  # ρ of the paper: the step is halved when fewer steps than this raise the objective
_FIRST_WINDOW, _WINDOW_DECREASE, _SHORTEST_WINDOW = 0.22, 0.03, 0.06  # of the iterations
_SMALLEST_FIRST_STEP = 0.1  # as a fraction of ε


def first_step_size(steps: int) -> float:
    """First step of :func:`pgd` as a fraction of ε, at most 1: four or more steps add up to 2 ε, across the ball."""
    return min(1.0, max(_SMALLEST_FIRST_STEP, 4 / steps))  # n falling steps add up to (n + 1) / 2 times the first


def pgd(
    objective: Objective,
    start: Tensor,
    centre: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float,
    momentum: float,
    keep_best: bool,
) -> Tensor:
    """Projected gradient ascent along the steepest direction, with a step size that falls linearly to 0.

    With momentum the direction is that of a decaying sum of unit gradients (MI-FGSM, Dong et al., "Boosting Adversarial
    Attacks with Momentum", CVPR 2018, arXiv 1710.06081, with the norm of the threat model).

    Args:
        objective: To maximise.
        start: ``(B, C, H, W)`` points of the ball.
        centre: ``(B, C, H, W)`` the images.
        threat: Ball and box.
        steps: Number of steps.
        step_size: Of the first step, as a fraction of ε.
        momentum: Decay of the sum of gradients, in [0, 1).
        keep_best: Return each image's best point instead of its last. Use it for deterministic objectives only: the
            largest of several noisy values is mostly luck.
    """
    best, best_value = start, torch.full((len(start),), -torch.inf, device=start.device)
    x, direction = start, torch.zeros_like(start)
    for step in range(steps):
        value, gradient = objective(x)
        best, best_value = _better(x, value, best, best_value)
        direction = momentum * direction + threat.steepest(gradient)
        size = step_size * (1 - step / steps) * threat.epsilon
        x = threat.project(x + size * threat.steepest(direction), centre)
    return _better(x, objective(x)[0], best, best_value)[0] if keep_best else x


def apgd(objective: Objective, start: Tensor, centre: Tensor, threat: ThreatModel, *, steps: int) -> Tensor:
    """Auto-PGD: momentum, and a step of 2 ε that is halved, back at the best point, whenever progress stalls.

    Args:
        objective: To maximise. It may be noisy: "best" then means best as observed, as in the paper's attack on
            randomised defences.
        start: ``(B, C, H, W)`` points of the ball.
        centre: ``(B, C, H, W)`` the images.
        threat: Ball and box.
        steps: Number of steps, at least 1.

    Returns:
        ``(B, C, H, W)`` each image's best point.
    """
    value, gradient = objective(start)
    x, previous = start, start
    best, best_value, best_gradient = start, value, gradient
    step = torch.full((len(start),), 2 * threat.epsilon, device=start.device)
    rises = torch.zeros(len(start), device=start.device)
    value_at_check, halved_at_check = best_value, torch.zeros(len(start), dtype=torch.bool, device=start.device)
    windows = _windows(steps)
    since_check, window = 0, next(windows)
    for iteration in range(steps):
        plain = threat.project(x + per_image(step, x) * threat.steepest(gradient), centre)
        weight = 1.0 if iteration == 0 else _MOMENTUM
        moved = threat.project(x + weight * (plain - x) + (1 - weight) * (x - previous), centre)
        previous, x = x, moved
        before, (value, gradient) = value, objective(x)
        rises += value > before
        improved = value > best_value
        best = torch.where(per_image(improved, x), x, best)
        best_gradient = torch.where(per_image(improved, x), gradient, best_gradient)
        best_value = torch.maximum(value, best_value)
        since_check += 1
        if since_check < window:
            continue
        stalled = rises < _RISING_SHARE * since_check
        stuck = ~halved_at_check & (best_value == value_at_check)
        halved_at_check = stalled | stuck
        step = torch.where(halved_at_check, step / 2, step)
        x = torch.where(per_image(halved_at_check, x), best, x)
        previous = torch.where(per_image(halved_at_check, x), best, previous)
        gradient = torch.where(per_image(halved_at_check, x), best_gradient, gradient)
        value = torch.where(halved_at_check, best_value, value)
        value_at_check = best_value
        rises = torch.zeros_like(rises)
        since_check, window = 0, next(windows)
    return best


def _windows(steps: int) -> Iterator[int]:
    """Iterations between checks: 22% of all, then 3% less each time, down to 6%."""
    share = _FIRST_WINDOW
    while True:
        yield max(1, round(share * steps))
        share = max(share - _WINDOW_DECREASE, _SHORTEST_WINDOW)


def _better(x: Tensor, value: Tensor, best: Tensor, best_value: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(per_image(value > best_value, x), x, best), torch.maximum(value, best_value)


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """``(B,)`` values, reshaped to broadcast over ``x``: ``(B, C, H, W)`` images or ``(B, N, C, H, W)`` tiles."""
    return values.view(-1, *(1,) * (x.dim() - 1))
