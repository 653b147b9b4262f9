"""The inner maximisation of adversarial training."""

import pytest
import torch
from torch import Tensor

from fs_runtime.attacks import ThreatModel
from fs_runtime.attacks.inner import feature_distance, replays, worst_case


def test_distance_by_hand() -> None:
    clean = torch.zeros(2, 2, 3)
    features = torch.tensor([[[1.0, 2, 2], [0, 0, 1]], [[0, 0, 0], [0, 3, 0]]])
    assert feature_distance(features, clean).tolist() == [5.0, 4.5]


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_worst_case_of_a_linear_map_is_a_corner(steps: int) -> None:
    """The features are the pixels times weights of either sign; the distance from 0 grows along each of them."""
    weights = torch.tensor([1.0, -2.0, 0.5, -0.1])

    def features(x: Tensor) -> Tensor:
        return (x.flatten(1) * weights).unsqueeze(-1)  # (B, T, 1)

    x = torch.full((2, 1, 2, 2), 0.5)
    found = worst_case(features, x, torch.zeros(2, 4, 1), x, ThreatModel("linf", 0.1), steps)
    assert torch.equal(found, x + 0.1)  # |w x| is largest at the largest x
    assert not found.requires_grad


def test_the_worst_case_stays_in_ball_and_box() -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 8, 3)

    def features(x: Tensor) -> Tensor:
        return network(x).flatten(2).mT

    x = torch.rand(4, 3, 8, 8)
    threat = ThreatModel("linf", 8 / 255)
    start = threat.random_start(x, torch.Generator().manual_seed(1))
    clean = features(x).detach()
    found = worst_case(features, x, clean, start, threat, 3)
    assert float((found - x).abs().max()) <= threat.epsilon + 1e-7
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    assert (feature_distance(features(found), clean) > 2 * feature_distance(features(start), clean)).all()
    assert network.weight.grad is None


def test_replays_go_on_along_the_gradient_of_what_they_were_trained_with() -> None:
    x = torch.full((2, 1, 2, 2), 0.5)
    threat = ThreatModel("linf", 0.1)
    weights = torch.tensor([[1.0, -2.0], [0.0, -0.1]])
    start = x + 0.05
    seen = []
    for image in replays(x, start, threat, 3):
        seen.append(image.detach().clone())
        assert image.requires_grad == (len(seen) < 3)  # nothing follows the last one
        if image.requires_grad:
            (image * weights).sum().backward()
            weights = -weights  # the loss changes as the network does
    up = torch.tensor([[0.6, 0.45], [0.55, 0.45]])  # a step of ε, as far as the ball goes
    down = torch.tensor([[0.5, 0.55], [0.55, 0.55]])
    assert torch.equal(seen[0], start)
    assert torch.allclose(seen[1], up.expand_as(x))
    assert torch.allclose(seen[2], down.expand_as(x))


def test_replays_stay_in_ball_and_box() -> None:
    x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    threat = ThreatModel("linf", 8 / 255)
    for image in replays(x, x, threat, 4):
        point = image.detach()
        assert float((point - x).abs().max()) <= threat.epsilon + 1e-7
        assert 0 <= float(point.min()) <= float(point.max()) <= 1
        if image.requires_grad:
            image.square().sum().backward()
