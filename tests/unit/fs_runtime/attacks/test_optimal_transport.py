import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from fs_runtime.attacks.optimal_transport import cluster_centres, sinkhorn_plan, transport_cost


def test_cost_of_a_hand_computed_case():
    """Plans between two points and two: [[1/2 - a, a], [a, 1/2 - a]], where (1/2 - a)² / a² follows from the costs."""
    e1, e2, e3 = torch.eye(3)
    first = torch.stack((e1, e2))[None]
    swapped, other = torch.stack((e2, 3 * e1))[None], torch.stack((e1, e3))[None]
    # Costs [[1, 0], [0, 1]]: the ratio is e^{-2/r}, and each of the two other corners holds 1/2 / (1 + e^{1/r}).
    assert float(transport_cost(first, swapped, 0.01)) == pytest.approx(0, abs=1e-6)
    assert float(transport_cost(first, swapped, 0.5)) == pytest.approx(1 / (1 + np.exp(2)), abs=1e-6)
    # Costs [[0, 1], [1, 1]]: the ratio is e^{1/r}, so a = 1/2 / (1 + e^{1/(2r)}), and the cost is 1/2 + a.
    assert float(transport_cost(first, other, 0.5)) == pytest.approx(0.5 + 0.5 / (1 + np.exp(1)), abs=1e-5)


def test_plan_has_uniform_margins():
    cost = torch.rand((3, 4, 6), generator=torch.Generator().manual_seed(0))
    plan = sinkhorn_plan(cost, 0.1)
    assert plan.sum(dim=2).flatten().tolist() == pytest.approx([1 / 4] * 12, abs=1e-4)
    assert plan.sum(dim=1).flatten().tolist() == pytest.approx([1 / 6] * 18, abs=1e-6)


def test_little_regularisation_gives_the_best_assignment():
    cost = torch.rand((1, 5, 5), generator=torch.Generator().manual_seed(1))
    rows, columns = linear_sum_assignment(cost[0].numpy())
    exact = float(cost[0, rows, columns].mean())
    assert float((sinkhorn_plan(cost, 0.002, 2000) * cost).sum()) == pytest.approx(exact, abs=1e-3)


def test_clusters_of_well_separated_tokens():
    groups = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    jitter = torch.tensor([[0.1, 0.0], [-0.1, 0.0]])
    tokens = (groups[:, None] + jitter).flatten(0, 1)[None]
    centres = cluster_centres(tokens, 3)[0]
    assert torch.allclose(torch.tensor(sorted(centres.tolist())), torch.tensor(sorted(groups.tolist())), atol=1e-5)


def test_gradient_reaches_every_token_of_a_cluster():
    tokens = torch.randn((2, 12, 4), generator=torch.Generator().manual_seed(2), requires_grad=True)
    cluster_centres(tokens, 3).sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad > 0).all()


def test_the_plan_is_the_gradient_of_the_cost():
    generator = torch.Generator().manual_seed(4)
    first, second = (torch.randn((1, 3, 4), generator=generator, dtype=torch.float64) for _ in range(2))
    first.requires_grad_()
    transport_cost(first, second, 0.01).sum().backward()
    step = 1e-6
    moved = first.detach().clone()
    moved[0, 1, 2] += step
    change = float(transport_cost(moved, second, 0.01) - transport_cost(first.detach(), second, 0.01)) / step
    assert float(first.grad[0, 1, 2]) == pytest.approx(change, abs=1e-3)


def test_more_clusters_than_tokens():
    with pytest.raises(ValueError, match="clusters"):
        cluster_centres(torch.zeros(1, 2, 3), 3)
