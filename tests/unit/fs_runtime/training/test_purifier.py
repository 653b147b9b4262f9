import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from fs_runtime.cli.train.purifier import train as train_command
from fs_runtime.encoders import VisionEncoder
from fs_runtime.psm.residual_unet import SIZES, ResidualUNetConfig, ResidualUNetPurifier
from fs_runtime.psm.storage import load_purifier
from fs_runtime.system.files import TrainingError
from fs_runtime.training.data import FolderPictures, folder_pictures
from fs_runtime.training.progress import Progress
from fs_runtime.training.purifier import PurifierSettings, _used, train_purifier
from fs_runtime.training.teachers import Teacher

app = typer.Typer()
app.command()(train_command)

SETTINGS = PurifierSettings(steps=6, batch_size=2, crop=32, learning_rate=2e-3, precision="no")


class Stopped(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool of a few small pictures takes a second to draw; the arithmetic is the same."""
    from fs_runtime.training import purifier as module
    from fs_runtime.training.dead_leaves import LeavesStream

    def stream(seed: int, batch_size: int, crop: int) -> LeavesStream:
        return LeavesStream(seed, batch_size, crop, side=48, pool=6, steps_per_picture=2)

    monkeypatch.setattr(module, "LeavesStream", stream)
    monkeypatch.setattr(module, "_HELD_OUT", 2)
    monkeypatch.setattr(module, "_SIDE", 48)


def purifier() -> ResidualUNetPurifier:
    torch.manual_seed(0)
    return ResidualUNetPurifier(ResidualUNetConfig(widths=(8, 16), blocks=(1, 1)))


def train(output: Path, settings: PurifierSettings = SETTINGS, **options: Any) -> ResidualUNetPurifier:
    network = purifier()
    train_purifier(network, output, settings, workers=0, checkpoint_every=2, **options)
    return network


def test_training_removes_noise(tmp_path: Path) -> None:
    network = purifier()
    settings = PurifierSettings(steps=60, batch_size=4, crop=32, learning_rate=4e-3, precision="no", average=0.9)
    scores: list[float] = []
    facts = train_purifier(
        network, tmp_path, settings, workers=0, checkpoint_every=20, report=lambda at: scores.append(at.score)
    )
    untrained = train_purifier(
        purifier(), tmp_path / "still", PurifierSettings(steps=1, crop=32, learning_rate=0, precision="no"), workers=0
    )
    assert facts["held_out_psnr"]["0.25"] > untrained["held_out_psnr"]["0.25"] + 1  # dB
    assert scores[-1] > scores[25]
    assert facts["sigma"] == {"served": 0.25, "trained": [0.05, 1.0], "focus": [0.1, 0.5]}
    assert facts["data"]["photographs"] == 0
    assert not network.training


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, stop: int) -> None:
    whole = train(tmp_path / "whole").state_dict()

    def stop_there(progress: Progress) -> None:
        if progress.step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path / "cut", report=stop_there)
    steps: list[int] = []
    again = train(tmp_path / "cut", report=lambda progress: steps.append(progress.step)).state_dict()
    assert steps == list(range(stop // 2 * 2 + 1, 7))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    train(tmp_path)
    other = PurifierSettings(steps=8, batch_size=2, crop=32, learning_rate=2e-3, precision="no")
    with pytest.raises(TrainingError, match="steps: 6 there, 8 now"):
        train(tmp_path, other)


@pytest.mark.parametrize("levels", [(0.0, 1.0), (0.5, 0.1), (0.1, 2.0)])
def test_noise_levels_that_make_no_sense_are_refused(levels: tuple[float, float]) -> None:
    with pytest.raises(TrainingError, match="sigma"):
        PurifierSettings(sigma=levels)


def test_command_trains_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "small", ResidualUNetConfig(widths=(8, 16), blocks=(1, 1)))
    arguments = ["--steps", "2", "--batch-size", "1", "--crop", "32", "--workers", "0", "--device", "cpu"]
    run = CliRunner().invoke(app, ["--output", str(tmp_path / "one"), *arguments])
    assert run.exit_code == 0, run.output
    trained, card = load_purifier(tmp_path / "one")
    assert "started_from" not in card
    x = torch.rand(1, 3, 20, 28)
    assert trained(x, torch.tensor([0.25])).shape == x.shape
    more = [*arguments, "--start-from", str(tmp_path / "one"), "--learning-rate", "0"]
    run = CliRunner().invoke(app, ["--output", str(tmp_path / "two"), *more])
    assert run.exit_code == 0, run.output
    again, card = load_purifier(tmp_path / "two")
    assert card["started_from"] == {"purifier": trained.fingerprint}
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in trained.state_dict().items())
    monkeypatch.setitem(SIZES, "large", ResidualUNetConfig(widths=(8, 16), blocks=(2, 1)))
    run = CliRunner().invoke(app, ["--output", str(tmp_path / "three"), "--size", "large", *more])
    assert run.exit_code == 0, run.output
    grown, card = load_purifier(tmp_path / "three")
    assert (card["name"], card["started_from"]) == ("photo-large", {"purifier": trained.fingerprint})
    torch.testing.assert_close(grown(x, torch.tensor([0.25])), trained(x, torch.tensor([0.25])), atol=1e-3, rtol=0)
    back = [*arguments, "--size", "small", "--start-from", str(tmp_path / "three")]
    run = CliRunner().invoke(app, ["--output", str(tmp_path / "four"), *back])
    assert run.exit_code == 2
    assert "cannot grow" in run.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output"),
        (["--output", "x", "--size", "huge"], "small or large"),
        (["--output", "x", "--sigma", "0.1"], "two levels"),
        (["--output", "x", "--sigma", "0.1,7"], "at most 1"),
        (["--output", "x", "--precision", "fp4"], "is not one of 'auto', 'float32', 'bfloat16'"),
    ],
)
def test_command_explains_bad_arguments(arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
    assert run.exit_code == 2
    assert message in run.output


def test_contact_sheet(tmp_path: Path) -> None:
    path = tmp_path / "leaves.png"
    run = CliRunner().invoke(app, ["--contact-sheet", str(path)])
    assert run.exit_code == 0, run.output
    assert np.asarray(Image.open(path)).shape == (1024, 1536, 3)


# --- photographs and teachers -----------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> FolderPictures:
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(12):
        colours = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((80, 60), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder_pictures(folder)


@pytest.fixture
def teacher(encoder: VisionEncoder) -> Teacher:
    return Teacher.of("tiny", encoder)


def test_a_teacher_is_part_of_the_loss(tmp_path: Path, photographs: FolderPictures, teacher: Teacher) -> None:
    """With the features' weight so high that pixels hardly count, purified features come nearer to the clean ones."""
    settings = PurifierSettings(
        steps=60, batch_size=4, crop=32, learning_rate=4e-3, precision="no", average=0.9, features=50.0
    )
    network = purifier()
    facts = train_purifier(network, tmp_path, settings, pictures=photographs, teachers=[teacher], workers=0)
    still = PurifierSettings(steps=1, batch_size=2, crop=32, learning_rate=0, precision="no")
    before = train_purifier(purifier(), tmp_path / "still", still, pictures=photographs, teachers=[teacher], workers=0)
    (learnt,), (untrained,) = facts["teachers"], before["teachers"]
    assert learnt["fingerprint"] == teacher.encoder.fingerprint
    assert learnt["held_out_fidelity"]["0.25"] > untrained["held_out_fidelity"]["0.25"] + 0.01
    assert facts["data"] == {
        "kind": "dead leaves and photographs",
        "generator": facts["data"]["generator"],
        "photographs": 11,
        "leaves": 0.5,
    }


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_with_photographs_ends_with_the_same_weights(
    tmp_path: Path, photographs: FolderPictures, teacher: Teacher, stop: int
) -> None:
    options: dict[str, Any] = {"pictures": photographs, "teachers": [teacher]}
    whole = train(tmp_path / "whole", **options).state_dict()

    def stop_there(progress: Progress) -> None:
        if progress.step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        train(tmp_path / "cut", report=stop_there, **options)
    again = train(tmp_path / "cut", **options).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    with pytest.raises(TrainingError, match="belongs to a run with other settings"):
        train(tmp_path / "cut", pictures=photographs)
    with pytest.raises(TrainingError, match="belongs to a run with other settings"):
        train(tmp_path / "cut")


def test_a_run_without_photographs_is_told_by_what_it_was_told_by_before() -> None:
    assert _used(SETTINGS, None, ()).keys() == dataclasses.asdict(SETTINGS).keys() - {"leaves", "features"}


@pytest.mark.parametrize("wrong", [{"leaves": 1.5}, {"leaves": float("nan")}, {"features": -1.0}])
def test_shares_and_weights_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(TrainingError, match=r"share of leaves|weight of features"):
        PurifierSettings(**wrong)


def test_command_learns_from_photographs_and_teachers(
    tmp_path: Path, photographs: FolderPictures, tiny_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SIZES, "small", ResidualUNetConfig(widths=(8, 16), blocks=(1, 1)))
    arguments = ["--steps", "2", "--batch-size", "1", "--crop", "32", "--workers", "0", "--device", "cpu"]
    source = ["--images", str(photographs.paths[0].parent), "--teacher", str(tiny_llava), "--teacher", "reference"]
    run = CliRunner().invoke(app, ["--output", str(tmp_path / "one"), *arguments, *source], env={"COLUMNS": "200"})
    assert run.exit_code == 0, run.output
    card = load_purifier(tmp_path / "one")[1]
    assert [each["model"] for each in card["teachers"]] == [str(tiny_llava), "reference"]
    assert "fidelity of one copy's tokens, reference" in run.output
    run = CliRunner().invoke(app, ["--output", str(tmp_path / "two"), *arguments, "--images", str(tmp_path / "none")])
    assert run.exit_code == 2
    assert "is not a folder" in run.output
