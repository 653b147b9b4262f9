"""Clusters of local tokens, and entropic optimal transport between them, in batches.

Source: Jia et al., "Adversarial Attacks against Closed-Source MLLMs via Feature Optimal Alignment" (FOA-Attack, arXiv
2505.21494); Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LLOYD_STEPS = 10


def cluster_centres(tokens: Tensor, clusters: int) -> Tensor:
    """Centres of k-means clusters of each image's tokens; differentiable in the tokens, not in the assignment.

    Starts from the first token and then repeatedly the one farthest from those chosen, so the result is deterministic.

    Args:
        tokens: ``(B, T, D)``.
        clusters: K, at most T.

    Returns:
        ``(B, K, D)``; an empty cluster keeps the centre it had.

    Raises:
        ValueError: There are fewer tokens than clusters.
    """
    if not 1 <= clusters <= tokens.shape[1]:
        raise ValueError(f"clusters must lie between 1 and the {tokens.shape[1]} tokens; got {clusters}")
    with torch.no_grad():
        centres = _far_apart(tokens, clusters)
        for _ in range(_LLOYD_STEPS):
            centres = _means(tokens, centres)
    return _means(tokens, centres)


def sinkhorn_plan(cost: Tensor, regularisation: float = 0.1, iterations: int = 100) -> Tensor:
    """Transport plan between uniform weights that minimises ⟨plan, cost⟩ - ``regularisation`` · entropy.

    Computed in logarithms, so that a small regularisation does not underflow.

    Args:
        cost: ``(B, M, N)``.
        regularisation: Of the entropy, positive.
        iterations: Sweeps over rows and columns.

    Returns:
        ``(B, M, N)``: columns add up to 1/N, and rows to 1/M once the sweeps have converged.
    """
    kernel = -cost / regularisation
    rows, columns = cost.shape[1:]
    u = torch.zeros_like(cost[:, :, 0])
    v = torch.zeros_like(cost[:, 0, :])
    for _ in range(iterations):
        u = -math.log(rows) - torch.logsumexp(kernel + v.unsqueeze(1), dim=2)
        v = -math.log(columns) - torch.logsumexp(kernel + u.unsqueeze(2), dim=1)
    return (kernel + u.unsqueeze(2) + v.unsqueeze(1)).exp()


def transport_cost(first: Tensor, second: Tensor, regularisation: float = 0.1) -> Tensor:
    """Cost 1 - cosine of moving one set of vectors onto another, with the plan held fixed in the gradient.

    Args:
        first: ``(B, M, D)``.
        second: ``(B, N, D)``.
        regularisation: Of the plan.

    Returns:
        ``(B,)``, in [0, 2].
    """
    first, second = (torch.nn.functional.normalize(side, dim=-1) for side in (first, second))
    cost = 1 - first @ second.mT  # (B, M, N)
    # The gradient of the optimal value is the plan (envelope theorem): no need to differentiate the sweeps.
    plan = sinkhorn_plan(cost.detach(), regularisation)
    return (plan * cost).sum(dim=(1, 2))


def _far_apart(tokens: Tensor, clusters: int) -> Tensor:
    chosen = tokens[:, :1]
    while chosen.shape[1] < clusters:
        farthest = torch.cdist(tokens, chosen).amin(dim=2).argmax(dim=1)  # (B,)
        chosen = torch.cat((chosen, tokens[torch.arange(len(tokens)), farthest].unsqueeze(1)), dim=1)
    return chosen


def _means(tokens: Tensor, centres: Tensor) -> Tensor:
    nearest = torch.cdist(tokens.detach(), centres.detach()).argmin(dim=2)  # (B, T)
    belongs = torch.nn.functional.one_hot(nearest, centres.shape[1]).to(tokens.dtype)  # (B, T, K)
    counts = belongs.sum(dim=1).unsqueeze(2)  # (B, K, 1)
    means = belongs.mT @ tokens / counts.clamp_min(1)
    return torch.where(counts > 0, means, centres)
