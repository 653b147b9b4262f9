import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from fs_runtime.encoders import VisionEncoder, load_encoder
from fs_runtime.loading.engine import load_smoother
from fs_runtime.psm.diffusion import DiffusionPurifier
from fs_runtime.psm.mapper import MapperConfig, SmoothnessMapper
from fs_runtime.psm.storage import PsmError, load_psm, save_psm
from fs_runtime.psm.unet import UNetConfig, UNetPurifier
from fs_runtime.robustness import Fingerprints
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES

FACTS = {"sigma": {"served": 0.3, "trained": [0.1, 0.4]}, "encoder": {"model": "tiny"}}


@pytest.fixture
def folder(encoder: VisionEncoder, tmp_path: Path) -> Path:
    """A PSM for the tiny encoder with random weights."""
    torch.manual_seed(3)
    purifier, mapper = UNetPurifier(UNetConfig(widths=(8, 16))), SmoothnessMapper(MapperConfig(encoder_width(encoder)))
    for network in (purifier, mapper):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    save_psm(tmp_path / "psm", purifier, mapper, encoder, FACTS)
    return tmp_path / "psm"


def encoder_width(encoder: VisionEncoder) -> int:
    with torch.no_grad():
        return encoder.encode(torch.zeros(1, *encoder.prepare(torch.zeros(9, 9, 3).byte().numpy()).pixels.shape)).shape[
            -1
        ]


def test_what_is_stored_comes_back(folder: Path, encoder: VisionEncoder) -> None:
    psm = load_psm(folder, encoder)
    assert psm.sigma == 0.3
    assert not psm.purifier.training
    assert psm.purifier.fingerprint == psm.card["purifier"]["fingerprint"] != psm.mapper.fingerprint
    assert psm.purifier.fingerprint.startswith("sha256:")
    x, sigma = torch.rand(1, 3, 20, 20), torch.tensor([0.2])
    again = load_psm(folder, encoder)
    assert torch.equal(psm.purifier(x, sigma), again.purifier(x, sigma))
    assert not torch.allclose(psm.purifier(x, sigma), UNetPurifier(UNetConfig(widths=(8, 16)))(x, sigma), atol=1e-3)


def test_fingerprint_covers_weights_and_architecture(folder: Path, encoder: VisionEncoder, tmp_path: Path) -> None:
    psm = load_psm(folder, encoder)
    with torch.no_grad():
        next(psm.mapper.parameters()).view(-1)[0].add_(1e-6)
    other = UNetPurifier(UNetConfig(widths=(8, 16), data_std=0.3))
    other.load_state_dict(psm.purifier.state_dict())
    card = save_psm(tmp_path / "other", other, psm.mapper, encoder, FACTS)
    assert card["mapper"]["fingerprint"] != psm.mapper.fingerprint
    assert card["purifier"]["fingerprint"] != psm.purifier.fingerprint


def test_smoother_takes_it_and_its_noise_level(folder: Path, tiny_llava: Path, encoder: VisionEncoder) -> None:
    smoother = load_smoother(str(tiny_llava), psm=str(folder), device="cpu")
    psm = load_psm(folder, encoder)
    assert smoother.sigma == 0.3
    assert Fingerprints.of(smoother, ENCODER_FEATURES) == Fingerprints(
        encoder.fingerprint, psm.purifier.fingerprint, psm.mapper.fingerprint
    )


def test_smoothing_runs_in_the_encoders_arithmetic(folder: Path, tiny_llava: Path) -> None:
    norms = []
    for dtype in ("float32", "bfloat16"):
        smoother = load_smoother(str(tiny_llava), psm=str(folder), device="cpu", dtype=dtype)
        assert next(smoother.purifier.parameters()).dtype == getattr(torch, dtype)  # type: ignore[union-attr]
        image = smoother.encoder.prepare(
            torch.randint(256, (40, 40, 3), generator=torch.Generator().manual_seed(1)).byte().numpy()
        )
        state = smoother.start(image, 0.3, 7)
        smoother.step([(state, 16)])
        norms.append(smoother.finish(state).norm_estimate)
    assert norms[0] == pytest.approx(norms[1], abs=0.02)


def test_another_encoder_is_refused(folder: Path, tiny_llava: Path, encoder: VisionEncoder, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_llava, tmp_path / "other")
    processor = json.loads((other / "preprocessor_config.json").read_text())
    processor["image_mean"] = [0.1, 0.2, 0.3]
    (other / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(PsmError, match=r"trained for another encoder, tiny .*train psm.*--psm none"):
        load_psm(folder, load_encoder(str(other)))


def test_a_changed_weight_is_found(folder: Path, encoder: VisionEncoder) -> None:
    path = folder / "mapper.safetensors"
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 1
    path.write_bytes(contents)
    with pytest.raises(PsmError, match=r"mapper\.safetensors is damaged"):
        load_psm(folder, encoder)


def test_half_a_file_is_found(folder: Path, encoder: VisionEncoder) -> None:
    path = folder / "purifier.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PsmError, match=r"purifier\.safetensors is damaged"):
        load_psm(folder, encoder)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda card: card.update(format=2), "format 1"),
        (lambda card: card.pop("mapper"), "mapper"),
        (lambda card: card["purifier"].update(kind="oracle"), "'oracle'"),
        (lambda card: card["purifier"]["config"].update(widths=[8, 24]), "does not fit"),
        (lambda card: card["purifier"]["config"].update(depth=3), "depth"),
        (lambda card: card.pop("sigma"), "sigma"),
        *(
            (lambda card, change=change: card["sigma"].update(change), "distorts sigma")
            for change in (
                {"trained": [0.1]},
                {"trained": [0.1, 0.2, 0.3]},
                {"trained": [0.3, 0.1]},
                {"trained": [0, 0.3]},
                {"trained": [0.1, math.inf]},
                {"trained": "12"},
                {"served": "much"},
                {"served": math.nan},
                {"served": 0},
            )
        ),
    ],
)
def test_a_wrong_card_is_refused(folder: Path, encoder: VisionEncoder, edit: object, words: str) -> None:
    card = json.loads((folder / "card.json").read_text())
    edit(card)  # type: ignore[operator]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(PsmError, match=words):
        load_psm(folder, encoder)


def test_missing_files_are_named(folder: Path, encoder: VisionEncoder) -> None:
    (folder / "mapper.safetensors").unlink()
    with pytest.raises(PsmError, match=r"mapper\.safetensors is missing"):
        load_psm(folder, encoder)
    with pytest.raises(PsmError, match=r"card\.json is missing"):
        load_psm(folder.parent, encoder)


def test_a_diffusion_purifier_is_stored_with_its_schedule(encoder: VisionEncoder, tmp_path: Path) -> None:
    unet = UNet2DModel(
        sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "ddpm")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2").save_pretrained(tmp_path / "ddpm")
    purifier = DiffusionPurifier.from_pretrained(str(tmp_path / "ddpm"))
    save_psm(tmp_path, purifier, SmoothnessMapper(MapperConfig(encoder_width(encoder))), encoder, FACTS)
    x, sigma = torch.rand(1, 3, 16, 16), torch.tensor([0.3])
    torch.testing.assert_close(load_psm(tmp_path, encoder).purifier(x, sigma), purifier(x, sigma).detach())
