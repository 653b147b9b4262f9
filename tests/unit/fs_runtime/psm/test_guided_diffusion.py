"""Checkpoints of guided diffusion become diffusers' U-Net that computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from fs_runtime.psm.diffusion import DiffusionPurifier
from fs_runtime.psm.guided_diffusion import alphas_cumprod, is_guided_diffusion, renamed, unet_config
from fs_runtime.system.files import TrainingError


def test_heads_lie_one_after_the_other() -> None:
    heads, width = 2, 128
    rows = torch.arange(heads * 3 * 64.0).view(-1, 1, 1).expand(-1, width, 1)
    found = renamed({"middle_block.1.qkv.weight": rows, "middle_block.1.qkv.bias": rows[:, 0, 0]}, layers=2)
    for index, letter in enumerate("qkv"):
        wanted = [head * 192 + index * 64 + channel for head in range(heads) for channel in range(64)]
        assert found[f"mid_block.attentions.0.to_{letter}.weight"].shape == (width, width)
        assert found[f"mid_block.attentions.0.to_{letter}.weight"][:, 0].tolist() == wanted
        assert found[f"mid_block.attentions.0.to_{letter}.bias"].tolist() == wanted


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    first = {"input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3)}
    torch.save(first | {"label_emb.weight": torch.zeros(2, 8)}, tmp_path / "a")
    with pytest.raises(TrainingError, match="not of guided diffusion at 256 pixels, no classes"):
        DiffusionPurifier.from_pretrained(str(tmp_path / "a"))
    torch.save(first, tmp_path / "b")
    with pytest.raises(TrainingError, match="another layout: it has 1 input blocks"):
        DiffusionPurifier.from_pretrained(str(tmp_path / "b"))


def published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a published file holds: deepinv's network keeps its schedule, too."""
    return {name: tensor for name, tensor in weights.items() if "alphas" not in name}


def test_all_weights_of_the_model_of_imagenet_have_a_place() -> None:
    models = pytest.importorskip("deepinv.models", reason="deepinv is not installed")
    with torch.device("meta"):
        weights = published(models.DiffUNet(large_model=True, pretrained=None).state_dict())
        config = unet_config(weights)
        wanted = UNet2DModel.from_config(config).state_dict()
    assert is_guided_diffusion(weights)
    assert config["block_out_channels"] == [256, 256, 512, 512, 1024, 1024]
    assert [name.startswith("Attn") for name in config["down_block_types"]] == [False] * 3 + [True] * 3
    found = renamed(weights, config["layers_per_block"])
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in wanted.items()
    }


def test_it_computes_what_the_original_computes(tmp_path: Path) -> None:
    models = pytest.importorskip("deepinv.models", reason="deepinv is not installed")
    torch.manual_seed(0)
    original = models.DiffUNet(large_model=False, pretrained=None).eval().requires_grad_(False)
    for name, parameter in original.named_parameters():
        if not parameter.any() and name.endswith("weight"):  # it starts as zero where that hides what comes before
            nn.init.normal_(parameter, std=0.02)
    torch.save(published(original.state_dict()), tmp_path / "model.pt")
    purifier = DiffusionPurifier.from_pretrained(str(tmp_path / "model.pt")).requires_grad_(False).eval()
    x, steps = torch.randn(2, 3, 64, 64), torch.tensor([3, 400])
    expected = original.forward_diffusion(x, steps)
    torch.testing.assert_close(purifier.unet(x, steps).sample, expected, atol=1e-4, rtol=1e-3)

    # As a purifier, too: deepinv keeps the result in [0, 1], and takes the nearest step by another measure.
    sigma = purifier.noise_levels[[150, 300]] / 2
    clean = torch.rand(2, 3, 64, 64)
    noisy = clean + sigma.view(-1, 1, 1, 1) * torch.randn(clean.shape)
    torch.testing.assert_close(purifier(noisy, sigma).clamp(0, 1), original(noisy, sigma), atol=2e-3, rtol=0)
    again = DiffusionPurifier.from_description(purifier.describe())
    again.load_state_dict(purifier.state_dict())
    assert torch.equal(again.noise_levels, purifier.noise_levels)


def test_its_schedule_is_the_linear_one() -> None:
    linear = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).alphas_cumprod.double()
    torch.testing.assert_close(alphas_cumprod(), linear, rtol=1e-4, atol=0)
