"""PGD and APGD on functions whose maximum in the ball is known."""

import pytest
import torch
from torch import Tensor

from fs_runtime.attacks import ThreatModel
from fs_runtime.attacks.ascent import _windows, apgd, first_step_size, pgd

CENTRE = torch.full((4, 1, 2, 2), 0.5)


def linear(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.tensor([1.0, -2.0, 3.0, -4.0]).view(1, 1, 2, 2)
    return (weights * (x - CENTRE)).sum(dim=(1, 2, 3)), weights.expand_as(x)


def narrow_valley(x: Tensor) -> tuple[Tensor, Tensor]:
    """Steep along one axis, flat along the others: a fixed step oscillates across the valley."""
    scales = torch.tensor([100.0, 1.0, 1.0, 1.0]).view(1, 1, 2, 2)
    offset = x - CENTRE - torch.tensor([0.013, 0.05, -0.05, 0.05]).view(1, 1, 2, 2)
    return -(scales * offset.square()).sum(dim=(1, 2, 3)), -2 * scales * offset


@pytest.mark.parametrize(("norm", "best"), [("linf", 1.0), ("l2", 30**0.5 * 0.1)])
@pytest.mark.parametrize("path", ["pgd", "apgd"])
def test_a_linear_function_reaches_its_maximum(norm, best, path):
    threat = ThreatModel(norm, 0.1)
    if path == "pgd":
        found = pgd(linear, CENTRE, CENTRE, threat, steps=20, step_size=0.25, momentum=0.0, keep_best=True)
    else:
        found = apgd(linear, CENTRE, CENTRE, threat, steps=20)
    assert linear(found)[0].tolist() == pytest.approx([best] * 4, rel=1e-4)


@pytest.mark.parametrize("step_size", [0.01, 0.1, 2.0])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_is_better_than_pgd_without_a_step_size_to_choose(norm, step_size):
    threat = ThreatModel(norm, 0.2)
    start = threat.random_start(CENTRE, torch.Generator().manual_seed(0))
    plain = pgd(narrow_valley, start, CENTRE, threat, steps=16, step_size=step_size, momentum=0.0, keep_best=True)
    auto = apgd(narrow_valley, start, CENTRE, threat, steps=16)
    assert narrow_valley(auto)[0].mean() > narrow_valley(plain)[0].mean() > narrow_valley(start)[0].mean()


def test_best_or_last():
    """A step across the whole ball overshoots: the best point is the start."""
    threat = ThreatModel("l2", 0.2)
    best, last = (
        pgd(narrow_valley, CENTRE, CENTRE, threat, steps=1, step_size=1.0, momentum=0.0, keep_best=keep)
        for keep in (True, False)
    )
    assert torch.equal(best, CENTRE)
    assert not torch.equal(last, CENTRE)


def test_momentum_by_hand():
    """Gradients (1, 0) then (0, 1): the second step goes along (0.5, 1) with momentum 1/2, half as far as the first."""
    gradients = iter([torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])])
    centre = torch.full((1, 1, 1, 2), 0.5)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(1), next(gradients).view(1, 1, 1, 2)

    found = pgd(
        objective, centre, centre, ThreatModel("l2", 0.4), steps=2, step_size=0.25, momentum=0.5, keep_best=False
    )
    expected = torch.tensor([0.6 + 0.05 * 0.5 / 1.25**0.5, 0.5 + 0.05 / 1.25**0.5])
    assert torch.allclose(found.flatten(), expected)


def test_the_first_step_lets_few_steps_go_as_far_as_many():
    assert [first_step_size(steps) for steps in (1, 4, 5, 16, 40, 300)] == [1, 1, 0.8, 0.25, 0.1, 0.1]


def test_windows_follow_the_paper():
    windows = _windows(100)
    assert [next(windows) for _ in range(8)] == [22, 19, 16, 13, 10, 7, 6, 6]
