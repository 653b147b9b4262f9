"""Denoisers of deepinv, with random weights: the package's own are not fetched."""

from __future__ import annotations

import urllib.error
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from fs_runtime.encoders import CheckpointError, VisionEncoder
from fs_runtime.loading.engine import load_smoother
from fs_runtime.psm.deepinv import DENOISERS, DeepinvPurifier
from fs_runtime.psm.mapper import MapperConfig, SmoothnessMapper
from fs_runtime.psm.pretrained import load_pretrained, pretrained_purifier
from fs_runtime.psm.storage import load_psm, prepare_for_inference, save_psm

pytest.importorskip("deepinv", reason="deepinv is not installed")

SMALL: dict[str, dict[str, Any]] = {
    "DRUNet": {"nc": [8, 16, 24, 32], "nb": 1},
    "FFDNet": {"n_conv_layers": 4, "nf": 16, "img_channels": 3},
    "SCUNet": {"config": [1, 1, 1, 1, 1, 1, 1], "dim": 64},
    "Restormer": {"dim": 8, "num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1, "heads": [1, 1, 2, 2]},
    "DiffUNet": {"large_model": False},
}


def small(name: str) -> DeepinvPurifier:
    torch.manual_seed(0)
    purifier = DeepinvPurifier.from_description({"name": name, "arguments": SMALL[name]})
    for parameter in purifier.parameters():
        if not parameter.any():  # last layers that start at zero would hide what comes before
            nn.init.normal_(parameter, std=0.02)
    return purifier.requires_grad_(False)


def test_all_that_are_known_are_tested() -> None:
    assert SMALL.keys() == DENOISERS.keys()


@pytest.mark.parametrize("name", SMALL)
def test_one_function_of_each_picture_and_its_noise_level_at_any_size(name: str) -> None:
    purifier = small(name)
    x, sigma = torch.rand(2, 3, 21, 37), torch.tensor([0.05, 0.18])
    out = purifier(x, sigma)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert torch.isfinite(out).all()
    assert torch.equal(out, purifier(x, sigma))  # draws nothing
    alone = torch.cat([purifier(x[i : i + 1], sigma[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(out, alone, atol=1e-5, rtol=1e-4)  # whatever else is in the batch
    blind = name in ("SCUNet", "Restormer")
    assert torch.allclose(out, purifier(x, sigma.flip(0)), atol=1e-6) == blind  # told the noise level, or not


@pytest.mark.parametrize("name", SMALL)
def test_a_picture_is_padded_as_its_edge_goes_on(name: str) -> None:
    purifier, facts = small(name), DENOISERS[name]
    side = max(facts.smallest, 2 * facts.stride)
    x, sigma = torch.rand(1, 3, side - 1, side), torch.tensor([0.1])
    padded = functional.pad(x, (0, 0, 0, 1), mode="replicate")
    torch.testing.assert_close(purifier(x, sigma), purifier.denoiser(padded, sigma)[..., :-1, :], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_lower_precisions_compute_the_same_up_to_rounding(name: str) -> None:
    purifier = small(name)
    x, sigma = torch.rand(1, 3, 32, 32), torch.tensor([0.1])
    exact = purifier(x, sigma)
    rounded = prepare_for_inference(purifier, "cpu", torch.bfloat16)(x, sigma)
    assert rounded.dtype == x.dtype
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, atol=0.02 * float(exact.abs().max()), rtol=0.05)


def ffdnet() -> DeepinvPurifier:
    torch.manual_seed(1)
    return DeepinvPurifier.from_description({"name": "FFDNet", "arguments": dict(DENOISERS["FFDNet"].arguments)})


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "ffdnet.pth"
    torch.save(ffdnet().denoiser.state_dict(), path)
    return path


def test_weights_come_from_a_file_of_either_kind(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(ffdnet().denoiser.state_dict(), other)
    x, sigma = torch.rand(1, 3, 16, 18), torch.tensor([0.1])
    first = pretrained_purifier(f"deepinv:FFDNet:{weights}")
    second = pretrained_purifier(f"deepinv:FFDNet:{other}")
    assert torch.equal(first(x, sigma), ffdnet()(x, sigma))
    assert first.fingerprint == second.fingerprint  # of the weights, whatever file they are in
    changed = ffdnet().denoiser
    with torch.no_grad():
        next(changed.parameters()).flatten()[0] += 1
    torch.save({"params": changed.state_dict()}, weights)
    assert pretrained_purifier(f"deepinv:FFDNet:{weights}").fingerprint != first.fingerprint


class AuthorsFfdnet(nn.Module):
    """FFDNet as its authors write it (Zhang et al. 2018, figure 2): the noise level is one channel, the thirteenth."""

    def __init__(self) -> None:
        super().__init__()
        widths = [13, *[96] * 11]
        layers = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()) for a, b in pairwise(widths)]
        self.model = nn.Sequential(*(part for layer in layers for part in layer), nn.Conv2d(96, 12, 3, padding=1))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        small = functional.pixel_unshuffle(x, 2)
        level = sigma.view(-1, 1, 1, 1).expand(-1, 1, *small.shape[-2:])
        return functional.pixel_shuffle(self.model(torch.cat([small, level], 1)), 2)


def test_ffdnet_takes_the_file_of_its_authors(tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = AuthorsFfdnet()
    torch.save(theirs.state_dict(), tmp_path / "ffdnet_color.pth")
    ours = DeepinvPurifier.from_pretrained("FFDNet", str(tmp_path / "ffdnet_color.pth"))
    x, sigma = torch.rand(2, 3, 24, 16), torch.tensor([0.05, 0.25])
    torch.testing.assert_close(ours(x, sigma), theirs(x, sigma), atol=1e-6, rtol=1e-5)


def test_weights_that_do_not_fit_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit DRUNet for three colours: \d+ of its weights"):
        DeepinvPurifier.from_pretrained("DRUNet", str(weights))
    torch.save(small("FFDNet").denoiser.state_dict(), weights)
    with pytest.raises(CheckpointError, match=r"ffdnet\.pth does not fit FFDNet"):
        DeepinvPurifier.from_pretrained("FFDNet", str(weights))
    with pytest.raises(CheckpointError, match=r"there is no file .*missing\.pth"):
        DeepinvPurifier.from_pretrained("FFDNet", str(tmp_path / "missing.pth"))


def test_where_there_is_no_network_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(CheckpointError, match=r"cannot download the weights of FFDNet: .*name it: deepinv:FFDNet:FILE"):
        DeepinvPurifier.from_pretrained("FFDNet")


def test_what_deepinv_downloads_has_a_noise_range_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(url: str, **_: object) -> dict[str, Tensor]:
        asked.append(url)
        from deepinv.models import DRUNet

        return dict(DRUNet(pretrained=None).state_dict())

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    purifier = DeepinvPurifier.from_pretrained("DRUNet")
    assert "color" in asked[0]
    assert purifier.sigma_range == (0, 20 / 255)
    assert sum(parameter.numel() for parameter in purifier.parameters()) == DENOISERS["DRUNet"].parameters


def test_a_model_is_served_with_it(tiny_llava: Path, weights: Path) -> None:
    smoother = load_smoother(str(tiny_llava), psm=f"deepinv:FFDNet:{weights}", device="cpu")
    assert smoother.psm is not None
    assert smoother.psm.name == "deepinv:FFDNet"  # no path of this machine
    assert smoother.psm.encoder == "any"
    assert (smoother.psm.sigma_low, smoother.psm.sigma_high) == (0, 75 / 255)
    assert not smoother.psm.trained_for(0.5)
    assert smoother.sigma == 0.05
    assert smoother.purifier is not None
    assert smoother.purifier.fingerprint == pretrained_purifier(f"deepinv:FFDNet:{weights}").fingerprint


def test_it_is_stored_beside_a_mapper(encoder: VisionEncoder, weights: Path, tmp_path: Path) -> None:
    purifier = pretrained_purifier(f"deepinv:FFDNet:{weights}")
    features = encoder.encode(encoder.prepare(np.zeros((32, 32, 3), np.uint8)).pixels[None])
    mapper = SmoothnessMapper(MapperConfig(features.shape[-1]))
    save_psm(tmp_path / "psm", purifier, mapper, encoder, {"sigma": {"served": 0.1, "trained": [0.1, 0.1]}})
    again = load_psm(tmp_path / "psm", encoder).purifier
    x, sigma = torch.rand(1, 3, 16, 16), torch.tensor([0.1])
    assert torch.equal(again(x, sigma), purifier(x, sigma))
    served = load_pretrained(f"deepinv:FFDNet:{weights}", encoder).purifier
    assert again.fingerprint == purifier.fingerprint == served.fingerprint
