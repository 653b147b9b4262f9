import pytest
import torch

from fs_runtime.attacks import ATTACKS, FeaturePipeline, ThreatModel, check_gradient_masking


def test_honest_gradients_pass(undefended, defended, images):
    threat = ThreatModel.of_size("l2", 8 / 255, images.shape[1:])
    report = check_gradient_masking(ATTACKS["pgd"](steps=4), defended, undefended, images, threat)
    assert report.passed
    assert [check.name for check in report.checks] == [
        "four times the steps",
        "8 draws a step instead of 1",
        "twice the ε",
        "white-box instead of transferred",
    ]
    assert report.markdown().count("| yes |") == 4


def test_masked_gradients_are_found(smoother, undefended, images):
    """A purifier that rounds has no gradient: a transferred attack then beats the white-box one."""

    class Rounding:
        fingerprint = "rounding"

        def __call__(self, x, sigma):
            return x + (torch.round(x * 32) / 32 - x).detach() - (x - x.detach())  # the value rounded, the gradient 0

    masked = FeaturePipeline(type(smoother)(smoother.encoder, Rounding()), 0.01, undefended.grid, draws=2)
    threat = ThreatModel.of_size("l2", 8 / 255, images.shape[1:])
    report = check_gradient_masking(ATTACKS["pgd"](steps=4), masked, undefended, images, threat)
    assert not report.passed
    assert [check.name for check in report.checks if not check.passed] == ["white-box instead of transferred"]
    assert "| NO |" in report.markdown()


def test_one_image_is_not_enough(undefended, defended, images):
    with pytest.raises(ValueError, match="two images"):
        check_gradient_masking(ATTACKS["pgd"](), defended, undefended, images[:1], ThreatModel("l2", 1.0))
