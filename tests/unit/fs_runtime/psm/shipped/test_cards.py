"""The shipped purifiers: their cards, their packaging, and that they are the default."""

import json
import tomllib
from pathlib import Path

import pytest
import torch
from setuptools import find_namespace_packages

from fs_runtime.loading.engine import load_smoother
from fs_runtime.psm.shipped import DEFAULT, shipped_purifiers
from fs_runtime.psm.storage import load_purifier


def test_they_are_small_and_in_the_package() -> None:
    shipped = shipped_purifiers()
    assert DEFAULT in shipped
    assert sum(file.stat().st_size for folder in shipped.values() for file in folder.iterdir()) <= 20e6
    root = Path(__file__).parents[5]
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


def test_the_small_one_is_the_default(tiny_llava: Path) -> None:
    smoother = load_smoother(str(tiny_llava), device="cpu")
    assert smoother.purifier is not None
    assert smoother.purifier.fingerprint == load_purifier(shipped_purifiers()[DEFAULT])[0].fingerprint
    assert smoother.mapper is None
    assert smoother.sigma == 0.25
    assert load_smoother(str(tiny_llava), psm="none", device="cpu").psm is None


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_float16_has_the_range_for_it(sigma: float) -> None:
    folder = shipped_purifiers()[DEFAULT]
    x = 0.5 + sigma * torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    exact, half = (
        load_purifier(folder, dtype=dtype)[0](x, torch.tensor([sigma])) for dtype in (torch.float32, torch.float16)
    )
    assert float((half - exact).abs().max()) < 0.02
