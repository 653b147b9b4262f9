"""The purifiers that ship: they are whole, they are for every encoder, and they denoise photographs."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from setuptools import find_namespace_packages
from torch import Tensor

from fs_runtime.evaluation.denoising import Case, clean_image, noisy_image
from fs_runtime.evaluation.photographs import photographs
from fs_runtime.loading import load_smoother
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.psm.shipped import DEFAULT, shipped_purifiers
from fs_runtime.psm.storage import load_purifier

SIDE = 112


@pytest.fixture(scope="module")
def purifier() -> PsmNetwork:
    return load_purifier(shipped_purifiers()[DEFAULT])[0]


@pytest.fixture(scope="module")
def clean() -> Tensor:
    pictures = photographs()
    return torch.stack([as_tensor(clean_image(pictures[name], SIDE)) for name in ("astronaut", "coffee", "china")])


def as_tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def noisy(clean: Tensor, sigma: float) -> Tensor:
    case = Case("any", "", SIDE, sigma, 0)
    return torch.stack([as_tensor(noisy_image(one.permute(1, 2, 0).numpy(), case)) for one in clean])


def psnr(purifier: PsmNetwork, clean: Tensor, sigma: float, told: float | None = None) -> float:
    with torch.inference_mode():
        found = purifier(noisy(clean, sigma), torch.full((len(clean),), sigma if told is None else told))
    errors = (found.float().clamp(0, 1) - clean).square().mean((1, 2, 3))
    return float(-10 * errors.log10().mean())


def test_they_are_small_and_in_the_package() -> None:
    shipped = shipped_purifiers()
    assert DEFAULT in shipped
    assert sum(file.stat().st_size for folder in shipped.values() for file in folder.iterdir()) <= 20e6
    root = Path(__file__).parents[3]
    packages = find_namespace_packages(str(root), include=["fs_runtime*"])
    assert {f"fs_runtime.psm.shipped.{name}" for name in shipped} <= set(packages)
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert {"*.json", "*.safetensors"} <= set(data)


def test_their_cards_say_what_they_are() -> None:
    for name, folder in shipped_purifiers().items():
        card = json.loads((folder / "card.json").read_text())
        assert card["name"] == f"photo-{name}"
        assert card["encoder"] == "any"
        assert card["sigma"]["served"] == 0.25
        assert card["sigma"]["trained"] == [0.05, 1.0]
        assert card["data"]["photographs"] == 0
        assert card["data"]["generator"] >= 1
        assert card["training"]["steps"] > 0
        assert card["held_out_psnr"]["0.25"] > 25


def test_the_small_one_is_the_default(tiny_llava: Path, purifier: PsmNetwork) -> None:
    smoother = load_smoother(str(tiny_llava), device="cpu")
    assert smoother.purifier is not None
    assert smoother.purifier.fingerprint == purifier.fingerprint
    assert smoother.mapper is None
    assert smoother.sigma == 0.25
    assert load_smoother(str(tiny_llava), psm="none", device="cpu").psm is None


# At 112 x 112, where there is less to go by than at the sizes in docs/results.md.
@pytest.mark.parametrize(("sigma", "least"), [(0.1, 28.0), (0.25, 23.5), (0.5, 20.5)])
def test_photographs_are_denoised(purifier: PsmNetwork, clean: Tensor, sigma: float, least: float) -> None:
    assert psnr(purifier, clean, sigma) > least


def test_a_wrong_noise_level_degrades_gracefully(purifier: PsmNetwork, clean: Tensor) -> None:
    right = psnr(purifier, clean, 0.25)
    near = [psnr(purifier, clean, 0.25, told) for told in (0.22, 0.28)]
    far = [psnr(purifier, clean, 0.25, told) for told in (0.15, 0.4)]
    nothing = float(-10 * (noisy(clean, 0.25).clamp(0, 1) - clean).square().mean((1, 2, 3)).log10().mean())
    assert right > max(near) > max(far)
    assert min(near) > right - 2
    assert min(far) > nothing


def test_a_picture_alone_is_purified_as_in_a_batch(purifier: PsmNetwork, clean: Tensor) -> None:
    x, sigma = noisy(clean, 0.25), torch.tensor([0.1, 0.25, 0.5])
    with torch.inference_mode():
        together = purifier(x, sigma)
        assert torch.equal(purifier(x, sigma), together)  # it draws nothing
        for one, level, expected in zip(x, sigma, together, strict=True):
            torch.testing.assert_close(purifier(one[None], level[None])[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_costs_hardly_anything(clean: Tensor, purifier: PsmNetwork, dtype: torch.dtype) -> None:
    half = load_purifier(shipped_purifiers()[DEFAULT], dtype=dtype)[0]
    for sigma in (0.1, 0.5):
        assert psnr(half, clean[:1], sigma) > psnr(purifier, clean[:1], sigma) - 0.1
