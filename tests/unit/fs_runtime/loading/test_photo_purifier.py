"""A purifier for any encoder: storing and finding it, and telling it apart from the PSM of one encoder."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fs_runtime.cli.train.psm import _purifier
from fs_runtime.encoders import CheckpointError, VisionEncoder, load_encoder
from fs_runtime.evaluation.features import measure_feature_statistics, measure_noise_levels
from fs_runtime.loading.engine import load_smoother, psm_folder
from fs_runtime.psm import shipped
from fs_runtime.psm.storage import PsmError, load_psm, load_purifier, save_purifier
from fs_runtime.psm.unet import UNetConfig, UNetPurifier
from fs_runtime.reference import reference_model_path, reference_psm_path
from fs_runtime.robustness import PsmUse
from fs_runtime.smoothing.feature_statistics import FILE_NAME


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    purifier = UNetPurifier(UNetConfig(widths=(8, 16)))
    for parameter in purifier.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    facts = {"name": "photo-test", "sigma": {"served": 0.25, "trained": [0.05, 0.5]}, "data": {"photographs": 0}}
    save_purifier(tmp_path / "small", purifier, facts)
    return tmp_path / "small"


@pytest.fixture
def ships(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces the shipped purifiers by the one above."""
    monkeypatch.setattr(shipped, "files", lambda _: folder.parent)
    return folder


def test_its_card_says_that_it_is_for_any_encoder(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    assert card["encoder"] == "any"
    assert card["mapper"] is None
    assert card["data"] == {"photographs": 0}
    assert {path.name for path in folder.iterdir()} == {"card.json", "purifier.safetensors"}


def test_it_fits_every_encoder(folder: Path, tiny_llava: Path, encoder: VisionEncoder) -> None:
    for one in (encoder, load_encoder(str(reference_model_path()))):
        psm = load_psm(folder, one)
        assert psm.mapper is None
        assert (psm.sigma, psm.facts.encoder, psm.facts.name) == (0.25, "any", "photo-test")
    smoother = load_smoother(str(tiny_llava), psm=str(folder), device="cpu")
    assert smoother.sigma == 0.25
    assert smoother.psm == psm.facts
    alone, card = load_purifier(folder)
    assert alone.fingerprint == smoother.purifier.fingerprint == card["purifier"]["fingerprint"]  # type: ignore[union-attr]


def test_without_an_encoder_a_card_is_not_for_any(folder: Path, encoder: VisionEncoder) -> None:
    card = json.loads((folder / "card.json").read_text())
    card.pop("encoder")
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(PsmError, match="encoder"):
        load_psm(folder, encoder)


def test_a_mapper_cannot_be_for_any_encoder(folder: Path, encoder: VisionEncoder) -> None:
    card = json.loads((folder / "card.json").read_text())
    card["mapper"] = json.loads((reference_psm_path() / "card.json").read_text())["mapper"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(PsmError, match="a mapper, which fits one"):
        load_psm(folder, encoder)


def test_it_is_the_default_of_models_without_a_psm(ships: Path, tiny_llava: Path) -> None:
    assert psm_folder("auto", str(tiny_llava)) == psm_folder("small", str(tiny_llava)) == ships
    assert psm_folder("auto", str(reference_model_path())) == reference_psm_path()
    assert psm_folder("small", str(reference_model_path())) == ships
    assert psm_folder("none", str(tiny_llava)) is None
    assert psm_folder("./small", str(tiny_llava)) == Path("small")  # a folder is meant
    assert load_smoother(str(tiny_llava), device="cpu").psm == load_psm(ships, load_encoder(str(tiny_llava))).facts


def test_feature_statistics_lie_with_the_model_then(
    ships: Path, tiny_llava: Path, tmp_path: Path, picture: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    model = shutil.copytree(tiny_llava, tmp_path / "model")
    smoother = load_smoother(str(model), device="cpu")
    measure_feature_statistics(smoother, [picture, picture[::-1].copy()], 0.25, 2).save(model / FILE_NAME)
    statistics = load_smoother(str(model), device="cpu").statistics
    assert statistics is not None
    assert statistics.card.purifier == smoother.purifier.fingerprint  # type: ignore[union-attr]
    assert load_smoother(str(model), psm="none", device="cpu").statistics is None
    assert "made with another purifier or mapper and is not used" in caplog.text


def test_the_default_sigma_follows_from_what_smoothing_leaves(
    tiny_llava: Path, tmp_path: Path, picture: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fs_runtime.loading")
    smoother, pictures = load_smoother(str(tiny_llava), device="cpu"), [picture, picture[::-1].copy()]
    assert smoother.sigma == 0.25
    statistics = measure_feature_statistics(smoother, pictures, 0.25, 2)
    levels = measure_noise_levels(smoother, pictures, (0.05, 0.2, 0.4), 2)
    assert [level.sigma for level in levels] == [0.05, 0.2, 0.4]
    assert 1 >= levels[0].fidelity > levels[2].fidelity
    file = tmp_path / "statistics.safetensors"

    def sigma_with(fidelities: tuple[float, ...]) -> float:
        made = [dataclasses.replace(level, token_fidelity=each) for level, each in zip(levels, fidelities, strict=True)]
        statistics.with_levels(made).save(file)
        return load_smoother(str(tiny_llava), device="cpu", feature_statistics=file).sigma

    assert sigma_with((0.99, 0.96, 0.8)) == 0.2
    assert "default sigma 0.2, the largest measured that leaves tokens a fidelity of 0.95" in caplog.text
    assert sigma_with((0.9, 0.8, 0.7)) == 0.05
    assert "even there tokens keep a fidelity of 0.900 only" in caplog.text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_smoothing_passes_it_in_half_precision(folder: Path, tiny_llava: Path, dtype: str) -> None:
    norms = []
    for arithmetic in ("float32", dtype):
        smoother = load_smoother(str(tiny_llava), psm=str(folder), device="cpu", dtype=arithmetic)
        picture = torch.randint(256, (40, 40, 3), generator=torch.Generator().manual_seed(1)).byte().numpy()
        state = smoother.start(smoother.encoder.prepare(picture), 0.25, 7)
        smoother.step([(state, 16)])
        norms.append(smoother.finish(state).norm_estimate)
    assert norms[0] == pytest.approx(norms[1], abs=0.02)


def test_use_says_whether_the_noise_is_in_range(folder: Path, encoder: VisionEncoder) -> None:
    facts = load_psm(folder, encoder).facts
    found = {sigma: PsmUse.of(facts, sigma) for sigma in (0.04, 0.05, 0.5, 0.6)}
    assert [use.sigma_in_range for use in found.values() if use] == [False, True, True, False]
    assert PsmUse.of(facts, 0.0) is None  # nothing is purified then
    assert PsmUse.of(None, 0.25) is None


def test_training_for_an_encoder_goes_on_from_it(ships: Path) -> None:
    by_name, by_folder = _purifier("small", 0), _purifier(str(ships), 0)
    expected = load_purifier(ships)[0]
    for found in (by_name, by_folder):
        assert found.fingerprint == expected.fingerprint
        assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_a_damaged_file_of_statistics_can_be_measured_anew(tiny_llava: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llava, tmp_path / "model")
    (model / FILE_NAME).write_bytes(b"no statistics")
    with pytest.raises(CheckpointError, match="holds no feature statistics"):
        load_smoother(str(model), device="cpu")
    assert load_smoother(str(model), device="cpu", without_statistics=True).statistics is None
