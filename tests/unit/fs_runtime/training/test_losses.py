import math

import pytest
import torch

from fs_runtime.training.losses import (
    LossWeights,
    diffusion_loss,
    distance_loss,
    identity_loss,
    mapper_loss,
    purifier_loss,
    robustness_loss,
    statistics_loss,
)

# Two images of one channel and 1 x 2 pixels; the errors of the purified ones are (3, 4) and (0, 2).
CLEAN = torch.tensor([[[[0.0, 0.0]]], [[[1.0, 1.0]]]])
PURIFIED = torch.tensor([[[[3.0, 4.0]]], [[[1.0, 3.0]]]])
SIGMA = torch.tensor([1.0, 0.5])

# One image of two tokens of width two: cosines with the clean ones 0.6 and 0.
Z_CLEAN = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
Z = torch.tensor([[[3.0, 4.0], [5.0, 0.0]]])


def test_diffusion_loss_is_the_noise_error_per_pixel() -> None:
    # (9 + 16) / 1 and (0 + 4) / 0.25, over 4 pixels
    assert float(diffusion_loss(PURIFIED, CLEAN, SIGMA)) == pytest.approx((25 + 16) / 4)


def test_diffusion_loss_is_one_for_a_purifier_that_does_nothing() -> None:
    clean = torch.rand(8, 3, 32, 32)
    sigma = torch.linspace(0.1, 0.4, 8)
    noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert float(diffusion_loss(noisy, clean, sigma)) == pytest.approx(1, abs=0.03)


def test_distance_loss_is_a_norm_and_not_its_square() -> None:
    assert float(distance_loss(PURIFIED, CLEAN)) == pytest.approx((5 + 2) / 2)


def test_distance_loss_has_a_gradient_where_nothing_is_wrong() -> None:
    purified = CLEAN.clone().requires_grad_()
    distance_loss(purified, CLEAN).backward()
    assert purified.grad is not None
    assert bool(torch.isfinite(purified.grad).all())


def test_robustness_loss_is_one_minus_the_mean_token_cosine() -> None:
    assert float(robustness_loss(Z, Z_CLEAN)) == pytest.approx(1 - (0.6 + 0.0) / 2)
    assert float(robustness_loss(7 * Z_CLEAN, Z_CLEAN)) == pytest.approx(0, abs=1e-6)


def test_robustness_loss_is_the_cosine_of_stacked_unit_tokens() -> None:
    a, b = torch.randn(2, 5, 16, 8, generator=torch.Generator().manual_seed(0)).unbind()
    stacked = [torch.nn.functional.normalize(z, dim=-1).flatten(1) / math.sqrt(16) for z in (a, b)]
    expected = 1 - (stacked[0] * stacked[1]).sum(-1).mean()
    torch.testing.assert_close(robustness_loss(a, b), expected)


def test_statistics_loss_sums_over_channels() -> None:
    # channel 0: means 4 and 0.5, deviations 1 and 0.5; channel 1: means 2 and 1, deviations 2 and 1
    assert float(statistics_loss(Z, Z_CLEAN)) == pytest.approx(3.5**2 + 0.5**2 + 1 + 1)


def test_statistics_loss_has_a_gradient_where_a_channel_never_moves() -> None:
    features = torch.tensor([[[3.0, 1.0], [3.0, 2.0]]], requires_grad=True)
    statistics_loss(features, Z_CLEAN).backward()
    assert features.grad is not None
    assert bool(torch.isfinite(features.grad).all())


def test_identity_loss_is_the_mean_square_over_tokens() -> None:
    # errors (2, 4) and (5, -2)
    assert float(identity_loss(Z, Z_CLEAN)) == pytest.approx((20 + 29) / 2)


def test_both_losses_weigh_their_parts() -> None:
    weights = LossWeights(2.0, 3.0, 5.0, 7.0)
    whole = purifier_loss(PURIFIED, CLEAN, SIGMA, Z, Z_CLEAN, weights)
    assert float(whole) == pytest.approx(41 / 4 + 2 * 0.7 + 3 * 3.5)
    whole = mapper_loss(Z, Z + 1, Z_CLEAN, weights)
    errors = (9 + 25 + 36 + 1) / 2  # (3, 5) and (6, -1)
    assert float(whole) == pytest.approx(0.7 + 5 * 14.5 + 7 * errors)
