"""Adversarial training of a vision tower: its loss, its benefit, resuming, and its files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from fs_runtime.attacks import FeaturePipeline, ThreatModel, run_attack
from fs_runtime.attacks.methods import ATTACKS, mean_scores
from fs_runtime.encoders import VisionEncoder, load_encoder
from fs_runtime.encoders.robust_tower import RobustEncoderError, load_robust_encoder
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.system.files import TrainingError
from fs_runtime.training.fare import RobustEncoderSettings, train_robust_encoder
from fs_runtime.training.loop import Progress, StageSettings
from tests.commands import app

SETTINGS = RobustEncoderSettings(
    attack_steps=2, optimisation=StageSettings(epochs=2, learning_rate=1e-3), batch_size=4, seed=1
)


class Stopped(Exception):
    """Stands for whatever ends a process."""


def pictures(count: int = 20) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [
        np.asarray(Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((56, 56)))
        for _ in range(count)
    ]


def train(
    encoder: VisionEncoder, output: Path, settings: RobustEncoderSettings = SETTINGS, **options: Any
) -> dict[str, Any]:
    return train_robust_encoder(encoder, pictures(), output, settings, checkpoint_every=2, **options)


@pytest.fixture(scope="module")
def whole(encoder: VisionEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    train(encoder, output)
    return output


def test_training_makes_features_harder_to_move(encoder: VisionEncoder, tmp_path: Path) -> None:
    """Under an attack that training did not see, PGD on the cosine, and no further from the clean features."""
    before = {name: value.clone() for name, value in encoder.tower.state_dict().items()}
    longer = dataclasses.replace(SETTINGS, optimisation=StageSettings(epochs=25, learning_rate=2e-3))
    train(encoder, tmp_path, longer)
    robust = load_robust_encoder(tmp_path, encoder)
    assert all(torch.equal(value, before[name]) for name, value in encoder.tower.state_dict().items())
    x = torch.stack([encoder.prepare(picture).pixels for picture in pictures()[:8]])
    grid = encoder.prepare(pictures()[0]).grid
    threat = ThreatModel("linf", SETTINGS.epsilon)
    moved = []
    for one in (encoder, robust):
        pipeline = FeaturePipeline(Smoother(one), 0.0, grid)
        found = run_attack(ATTACKS["pgd"](steps=10), [pipeline], x, threat)
        moved.append(float(mean_scores(ATTACKS["pgd"]().score, [pipeline], [pipeline.features(x)], found).mean()))
    assert moved[1] < moved[0] - 0.2 * abs(1 + moved[0])  # a score of -1 is a feature that did not move


# 4 steps an epoch, so 8: after the first, at a checkpoint, and just before the end.
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_an_interrupted_run_ends_with_the_same_weights(
    encoder: VisionEncoder, whole: Path, tmp_path: Path, stop: int
) -> None:
    steps = []

    def stop_there(progress: Progress) -> None:
        steps.append(progress.step)
        if len(steps) == stop:
            raise Stopped

    with pytest.raises(Stopped):
        train(encoder, tmp_path, report=stop_there)
    again: list[Progress] = []
    train(encoder, tmp_path, report=again.append)
    assert len(again) == 8 - stop // 2 * 2
    expected = load_file(whole / "tower.safetensors")
    for name, tensor in load_file(tmp_path / "tower.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    assert json.loads((tmp_path / "card.json").read_text()) == json.loads((whole / "card.json").read_text())


def test_the_card_and_the_fingerprint(encoder: VisionEncoder, whole: Path) -> None:
    card = json.loads((whole / "card.json").read_text())
    robust = load_robust_encoder(whole, encoder)
    assert card["encoder"]["fingerprint"] == encoder.fingerprint
    assert card["tower"]["fingerprint"] == robust.fingerprint != encoder.fingerprint
    assert card["training"]["epsilon"] == pytest.approx(8 / 255)
    cosines = card["held_out_cosine"]
    assert cosines["attacked, original"] < cosines["attacked"] < cosines["clean"] <= 1
    assert not any(parameter.requires_grad for parameter in robust.tower.parameters())


def test_another_run_is_not_continued(encoder: VisionEncoder, whole: Path) -> None:
    with pytest.raises(TrainingError, match=r"epsilon: .*another --output"):
        train(encoder, whole, dataclasses.replace(SETTINGS, epsilon=4 / 255))


def test_a_tower_for_another_encoder_is_refused(whole: Path, encoder: VisionEncoder) -> None:
    other = encoder.with_tower(encoder.tower)
    with pytest.raises(RobustEncoderError, match="another encoder"):
        load_robust_encoder(whole, other)


@pytest.mark.parametrize(("name", "message"), [("card.json", "holds no robust encoder"), ("tower.safetensors", "copy")])
def test_missing_and_damaged_files(
    encoder: VisionEncoder, whole: Path, tmp_path: Path, name: str, message: str
) -> None:
    for file in ("card.json", "tower.safetensors"):
        (tmp_path / file).write_bytes((whole / file).read_bytes())
    (tmp_path / name).unlink()
    with pytest.raises(RobustEncoderError, match=message):
        load_robust_encoder(tmp_path, encoder)
    contents = bytearray((whole / name).read_bytes())
    contents[-2] ^= 1
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(RobustEncoderError, match=r"damaged|cannot be read"):
        load_robust_encoder(tmp_path, encoder)


@pytest.mark.parametrize("change", [{"epsilon": 0.0}, {"epsilon": 1.0}, {"attack_steps": 0}])
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match="must"):
        RobustEncoderSettings(**change)


def test_families_without_a_tower_of_their_own(encoder: VisionEncoder, tmp_path: Path) -> None:
    bare = encoder.with_tower(encoder.tower)
    bare.tower = None
    with pytest.raises(TrainingError, match="by itself"):
        train(bare, tmp_path)
    with pytest.raises(ValueError, match="exchanged"):
        bare.with_tower(encoder.tower)


def test_command(tiny_llava: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number, picture in enumerate(pictures(8)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    output = tmp_path / "robust"
    options = f"--model {tiny_llava} --images {folder} --output {output} --batch-size 4 --epochs 2 --device cpu"
    done = CliRunner().invoke(app, ["train", "robust-encoder", *options.split(), "--epsilon", "4"])
    assert done.exit_code == 0, done.output
    assert "Cosine with the original's features at 4/255" in done.output
    robust = load_robust_encoder(output, load_encoder(str(tiny_llava)))
    assert robust.family == "llava"
    assert any((output / "logs").iterdir())
    refused = CliRunner().invoke(app, ["train", "robust-encoder", *options.split(), "--epsilon", "0"])
    assert refused.exit_code == 2
    assert "epsilon" in refused.output
