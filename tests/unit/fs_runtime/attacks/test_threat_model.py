import math

import pytest
import torch

from fs_runtime.attacks import ThreatModel

SHAPE = (3, 4, 4)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_linf_projection_by_hand():
    centre = torch.full((1, 1, 1, 4), 0.5)
    centre[..., 3] = 0.95
    x = torch.tensor([[[[0.9, 0.45, 0.1, 1.5]]]])
    projected = ThreatModel("linf", 0.1).project(x, centre)
    assert projected.flatten().tolist() == pytest.approx([0.6, 0.45, 0.4, 1.0])


def test_l2_projection_by_hand():
    centre = torch.full((2, 1, 1, 2), 0.5)
    x = centre + torch.tensor([[3.0, 4.0], [0.03, 0.04]]).view(2, 1, 1, 2)
    projected = ThreatModel("l2", 0.1).project(x, centre) - centre
    assert projected.flatten().tolist() == pytest.approx([0.06, 0.08, 0.03, 0.04])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projections_and_starts_stay_in_ball_and_box(norm, generator):
    threat = ThreatModel(norm, 0.3)
    centre = torch.rand((64, *SHAPE), generator=generator)
    for point in (
        threat.project(torch.randn(centre.shape, generator=generator), centre),
        threat.random_start(centre, generator),
    ):
        assert float(threat.size(point - centre).max()) <= 0.3 + 1e-6
        assert float(point.min()) >= 0
        assert float(point.max()) <= 1
    assert float(threat.size(point - centre).max()) > 0.2  # a start is not just the image itself


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_direction_of_unit_size_is_steeper(norm, generator):
    threat = ThreatModel(norm, 1.0)
    gradient = torch.randn((1, *SHAPE), generator=generator)
    steepest = threat.steepest(gradient)
    assert float(threat.size(steepest)) == pytest.approx(1, abs=1e-6)
    for _ in range(50):
        other = torch.randn((1, *SHAPE), generator=generator)
        assert (gradient * other / threat.size(other)).sum() < (gradient * steepest).sum()


def test_a_zero_gradient_does_not_move():
    assert not ThreatModel("l2", 1.0).steepest(torch.zeros(1, *SHAPE)).any()


def test_l2_ball_of_equal_size_reaches_the_corners():
    assert ThreatModel.of_size("l2", 8 / 255, (3, 64, 64)).epsilon == pytest.approx(8 / 255 * math.sqrt(12288))
    assert ThreatModel.of_size("linf", 8 / 255, (3, 64, 64)).epsilon == 8 / 255


@pytest.mark.parametrize(("norm", "epsilon"), [("l1", 0.1), ("linf", 0.0), ("l2", -1.0), ("l2", math.inf)])
def test_bad_input_is_named(norm, epsilon):
    with pytest.raises(ValueError, match="norm" if norm == "l1" else "epsilon"):
        ThreatModel(norm, epsilon)
