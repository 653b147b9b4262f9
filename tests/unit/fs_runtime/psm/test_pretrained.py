"""Denoisers of other projects as a ``psm`` setting names them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from fs_runtime.encoders import CheckpointError, VisionEncoder
from fs_runtime.loading.engine import psm_folder
from fs_runtime.loading.memory import estimate_memory
from fs_runtime.psm.deepinv import DENOISERS
from fs_runtime.psm.pretrained import is_pretrained, label, load_pretrained, memory_needs, pretrained_purifier


@pytest.mark.parametrize(
    ("psm", "known"),
    [("deepinv:DRUNet", True), ("diffusion:google/ddpm", True), ("small", False), ("deepinv", False), ("a:b", False)],
)
def test_a_setting_that_names_one_is_told_from_a_folder(psm: str, known: bool) -> None:
    assert is_pretrained(psm) == known
    assert (psm_folder(psm, "some/model") is None) == known


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepinv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deepinv", None)
    with pytest.raises(CheckpointError, match=r"pip install 'fs-serve\[deepinv\]'"):
        pretrained_purifier("deepinv:DRUNet")


def test_an_unknown_denoiser_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(CheckpointError, match="known are DRUNet, FFDNet, SCUNet, Restormer, DiffUNet"):
        pretrained_purifier("deepinv:DIP")


def diffusion_model(folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder)  # fmt: skip
    DDPMScheduler(beta_schedule="linear").save_pretrained(folder)
    return f"diffusion:{folder}"


def test_a_diffusion_model_serves_as_it_is(encoder: VisionEncoder, tmp_path: Path) -> None:
    psm = diffusion_model(tmp_path / "unet-of-mine")
    loaded = load_pretrained(psm, encoder)
    assert loaded.mapper is None
    assert loaded.facts.name == label(psm) == "diffusion:unet-of-mine"
    assert loaded.facts.sigma_low == pytest.approx((1e-4 / (1 - 1e-4)) ** 0.5 / 2, rel=1e-3)  # of the first timestep
    assert loaded.facts.sigma_high > 10
    assert loaded.sigma == 0.05
    assert loaded.card["purifier"]["fingerprint"] == loaded.purifier.fingerprint
    again, other = load_pretrained(psm, encoder), load_pretrained(diffusion_model(tmp_path / "b", seed=1), encoder)
    assert again.purifier.fingerprint == loaded.purifier.fingerprint != other.purifier.fingerprint


def test_what_is_no_diffusion_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no diffusers UNet2DModel"):
        pretrained_purifier(f"diffusion:{tmp_path}")


def test_its_memory_is_counted(tiny_llava: Path, tmp_path: Path) -> None:
    def needs(psm: str) -> int:
        return estimate_memory(str(tiny_llava), language_model=False, batch_size=2, device="cpu", psm=psm)

    facts = DENOISERS["DRUNet"]
    more = needs("deepinv:DRUNet") - needs("none")
    assert more > 4 * facts.parameters
    assert memory_needs("deepinv:DRUNet:/some/file.pth") == (facts.parameters, facts.live)
    model = diffusion_model(tmp_path)
    weights, live = memory_needs(model)
    assert weights * 4 == (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size // 4 * 4
    assert live > 0
