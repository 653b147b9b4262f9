import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from fs_runtime.attacks import ThreatModel
from fs_runtime.attacks.inner import feature_distance, worst_case
from fs_runtime.cli.train.psm import train as train_command
from fs_runtime.encoders import VisionEncoder
from fs_runtime.psm.mapper import SmoothnessMapper
from fs_runtime.psm.storage import load_psm
from fs_runtime.psm.unet import UNetConfig, UNetPurifier
from fs_runtime.system.files import TrainingError
from fs_runtime.training.loop import StageSettings
from fs_runtime.training.progress import Progress
from fs_runtime.training.psm import PsmSettings, train_psm
from tests.child_process import environment
from tests.forked_process import forks_with_libraries

SETTINGS = PsmSettings(
    sigma=(0.25, 0.1, 0.35),
    batch_size=4,
    purifier=StageSettings(epochs=2, learning_rate=2e-3),
    mapper=StageSettings(epochs=2, learning_rate=1e-3),
    mapper_width=16,
)


class Stopped(Exception):
    """Stands for whatever ends a process."""


def pictures(count: int = 20) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [
        np.asarray(Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)).resize((56, 56)))
        for _ in range(count)
    ]


def purifier() -> UNetPurifier:
    torch.manual_seed(0)
    return UNetPurifier(UNetConfig(widths=(8, 16)))


def train(encoder: VisionEncoder, output: Path, settings: PsmSettings = SETTINGS, **options: Any) -> dict[str, Any]:
    return train_psm(encoder, purifier(), pictures(), output, settings, checkpoint_every=2, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "purifier.safetensors") | {
        f"mapper.{name}": tensor for name, tensor in load_file(folder / "mapper.safetensors").items()
    }


@pytest.fixture(scope="module")
def whole(encoder: VisionEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    train(encoder, output)
    return output


def test_training_helps_and_its_outcome_can_be_served(encoder: VisionEncoder, tmp_path: Path) -> None:
    longer = dataclasses.replace(
        SETTINGS,
        purifier=StageSettings(epochs=8, learning_rate=2e-3),
        mapper=StageSettings(epochs=20, learning_rate=3e-3),
    )
    train(encoder, tmp_path, longer)
    psm = load_psm(tmp_path, encoder)
    scores = psm.card["held_out_score"]
    assert scores["none"] < min(scores["purifier"], scores["both"]) <= 1  # one batch by heart tells about the mapper
    assert psm.sigma == 0.25
    assert psm.card["sigma"]["trained"] == [0.1, 0.35]
    assert psm.card["encoder"]["fingerprint"] == encoder.fingerprint


# 4 steps an epoch, so 8 in each stage: within the first stage, at its end, and within the second.
@pytest.mark.parametrize("stop", [1, 3, 8, 9, 13])
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
    assert len(again) == 16 - stop // 2 * 2  # goes on from the last checkpoint, not from the start
    expected = weights(whole)
    for name, tensor in weights(tmp_path).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("search", [{"attack_steps": 1}, {"attack_steps": 0, "replays": 3}])
def test_training_against_attacks_can_be_interrupted_too(
    encoder: VisionEncoder, whole: Path, tmp_path: Path, search: dict[str, int]
) -> None:
    against = dataclasses.replace(SETTINGS, epsilon=8 / 255, **search)
    train(encoder, tmp_path / "whole", against)

    def stop_there(progress: Progress) -> None:
        if (progress.stage, progress.step) == ("mapper", 5):
            raise Stopped

    with pytest.raises(Stopped):
        train(encoder, tmp_path / "cut", against, report=stop_there)
    train(encoder, tmp_path / "cut", against)
    expected, without = weights(tmp_path / "whole"), weights(whole)
    for name, tensor in weights(tmp_path / "cut").items():
        assert torch.equal(tensor, expected[name]), name
    assert not all(torch.equal(tensor, without[name]) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "search", [{"attack_steps": 2}, pytest.param({"attack_steps": 0, "replays": 3}, marks=pytest.mark.slow)]
)
def test_training_against_attacks_makes_features_harder_to_move(
    encoder: VisionEncoder, tmp_path: Path, search: dict[str, int]
) -> None:
    """One batch by heart, with and without attacks, attacked with the same noise."""
    plain = dataclasses.replace(SETTINGS, sigma=(0.1,), purifier=StageSettings(40, 4e-3), mapper=StageSettings(0, 1e-3))
    against = dataclasses.replace(plain, epsilon=32 / 255, **search)
    few = pictures(20)
    x = torch.stack([encoder.prepare(picture).pixels for picture in few])
    threat = ThreatModel("linf", 32 / 255)
    noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    level = torch.full((len(x),), 0.1)
    clean = encoder.encode(x).detach()
    distances = {}
    for name, settings in {"plain": plain, "against": against}.items():
        trained = purifier()
        train_psm(encoder, trained, few, tmp_path / name, settings)

        def features(z: torch.Tensor, trained: UNetPurifier = trained) -> torch.Tensor:
            return encoder.encode(trained(z + noise, level))

        moved = worst_case(features, x, clean, x, threat, 5)
        distances[name] = float(feature_distance(features(moved), clean).mean())
    assert distances["against"] < 0.9 * distances["plain"]


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": -0.1},
        {"epsilon": 1.0},
        {"epsilon": float("nan")},
        {"attack_steps": 0},
        {"replays": 0},
        {"replays": 2},
    ],
)
def test_attacks_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(change)).replace("_", " ")):
        PsmSettings(**change)


@pytest.mark.parametrize("change", [{"mapper_width": 6}, {"mapper_width": 0}, {"bare": float("nan")}])
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(change)).replace("_", " ")):
        PsmSettings(**change)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["epochs", "learning_rate", "weight_decay"])
def test_stages_that_make_no_sense_are_refused(name: str, value: float) -> None:
    with pytest.raises(TrainingError, match=name.replace("_", " ")):
        StageSettings(**{"epochs": 1.0, "learning_rate": 1e-3, name: value})


def test_a_finished_psm_can_be_trained_further(encoder: VisionEncoder, whole: Path, tmp_path: Path) -> None:
    psm = load_psm(whole, encoder)
    still = dataclasses.replace(
        SETTINGS, purifier=StageSettings(epochs=1, learning_rate=0), mapper=StageSettings(epochs=1, learning_rate=0)
    )
    train_psm(encoder, psm.purifier, pictures(), tmp_path, still, mapper=psm.mapper)
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path).items())
    with pytest.raises(TrainingError, match="start"):  # from fresh networks it is another run
        train(encoder, tmp_path, still)


def test_training_further_in_bfloat16_starts_from_the_weights_as_they_are(
    tiny_llava: Path, images: Path, whole: Path, tmp_path: Path
) -> None:
    arguments = command(tiny_llava, images, tmp_path / "further", "--start-from", str(whole), "--precision", "bfloat16")
    done = run(
        *arguments, "--purifier-epochs", "0", "--mapper-epochs", "0"
    )  # not in this process: accelerate has one precision in each
    assert done.returncode == 0, done.stderr
    expected = weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "further").items())
    card = json.loads((tmp_path / "further" / "card.json").read_text())
    assert card["training"]["mapper_width"] == card["mapper"]["config"]["width"] == 16


def test_another_run_is_not_continued(encoder: VisionEncoder, whole: Path) -> None:
    other = dataclasses.replace(SETTINGS, sigma=(0.5,))
    with pytest.raises(TrainingError, match=r"sigma: \[0.25, 0.1, 0.35\] there, \[0.5\] now.*another --output"):
        train(encoder, whole, other)


def test_a_run_does_not_go_on_with_other_pictures(encoder: VisionEncoder, whole: Path) -> None:
    others = [255 - picture for picture in pictures()]
    with pytest.raises(TrainingError, match=r"pictures_sha256: .* another --output"):
        train_psm(encoder, purifier(), others, whole, SETTINGS)


def test_a_broken_checkpoint_is_explained(encoder: VisionEncoder, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    with pytest.raises(TrainingError, match=r"is damaged.*delete it"):
        train(encoder, tmp_path)


@pytest.mark.parametrize("sigma", [(), (0.0,), (0.25, -1.0), (2.0,), (float("nan"),)])
def test_noise_levels_that_make_no_sense_are_refused(sigma: tuple[float, ...]) -> None:
    with pytest.raises(TrainingError, match="sigma"):
        PsmSettings(sigma=sigma)


def command(model: Path, images: Path, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "server.cli", "train", "psm", "--model", str(model), "--images", str(images),
        "--output", str(output), "--batch-size", "4", "--purifier-epochs", "3", "--mapper-epochs", "1",
        "--checkpoint-every", "1", "--device", "cpu", *more,
    ]  # fmt: skip


ENVIRONMENT = environment() | {"OMP_NUM_THREADS": "1", "COLUMNS": "400", "TERM": "dumb"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of :func:`command` in a process of its own, which has the largest libraries already."""
    return forks_with_libraries().run("server.cli", *arguments[3:], environment=ENVIRONMENT)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of pictures with one that cannot be read."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, picture in enumerate(pictures()):
        Image.fromarray(picture).save(folder / f"{number:02}.png")
    (folder / "text.png").write_text("not a picture")
    return folder


def test_the_command_survives_a_kill(tiny_llava: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    arguments = command(tiny_llava, images, output)
    with Path(os.devnull).open("wb") as nowhere:
        process = forks_with_libraries().fork(
            module="server.cli", arguments=arguments[3:], environment=ENVIRONMENT, log=nowhere
        )
    deadline = time.monotonic() + 200
    while not (output / "checkpoint.pt").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (output / "card.json").exists()  # it was still at work
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "20 pictures" in done.stderr
    assert "1 files were left out" in done.stderr
    assert "text.png" in (output / "skipped.txt").read_text()
    assert "Gaussian robustness score" in done.stderr
    assert run(*command(tiny_llava, images, tmp_path / "whole")).returncode == 0
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(output).items())
    assert any((output / "logs").iterdir())
    certified = run(
        sys.executable, "-m", "server.cli", "certify", str(images / "00.png"), "--model", str(tiny_llava),
        "--psm", str(output), "--samples", "32", "--json",
    )  # fmt: skip
    certificate = json.loads(certified.stdout)
    card = json.loads((output / "card.json").read_text())
    assert certificate["sigma"] == 0.25
    assert certificate["fingerprints"]["purifier"] == card["purifier"]["fingerprint"]
    assert certificate["fingerprints"]["mapper"] == card["mapper"]["fingerprint"]


def test_two_processes_do_what_one_does(tiny_llava: Path, images: Path, tmp_path: Path) -> None:
    one, two = (command(tiny_llava, images, tmp_path / name, "--purifier-epochs", "1") for name in ("one", "two"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *two[1:]]
    for done in (
        run(*one),
        subprocess.run(launch, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, check=False),
    ):
        assert done.returncode == 0, done.stderr
    card = json.loads((tmp_path / "one" / "card.json").read_text())
    for part, kind in (("purifier", UNetPurifier), ("mapper", SmoothnessMapper)):
        torch.manual_seed(0)
        network = kind.from_description(card[part]["config"])
        fresh = {name: parameter.detach() for name, parameter in network.named_parameters()}
        expected, found = (load_file(tmp_path / name / f"{part}.safetensors") for name in ("one", "two"))
        moved = sum(float((expected[name] - fresh[name]).square().sum()) for name in fresh) ** 0.5
        apart = sum(float((expected[name] - found[name]).square().sum()) for name in fresh) ** 0.5
        assert apart < 0.1 * moved, part  # rounding, which AdamW makes larger where a gradient is tiny


def invoke(arguments: list[str]) -> Result:
    """Runs a command of :func:`command` in this process."""
    application = typer.Typer()
    application.command("psm")(train_command)
    application.command("other")(lambda: None)  # a second command, so that the first needs its name
    return CliRunner().invoke(application, arguments[4:])


def test_mistakes_are_explained(tiny_llava: Path, images: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (command(tiny_llava, tmp_path / "none", tmp_path / "out"), "is not a folder"),
        (command(tiny_llava, images, tmp_path / "out", "--sigma", "much"), "separated by commas"),
        (command(tiny_llava, images, tmp_path / "out", "--sigma", "0"), "above 0"),
        (command(tiny_llava, images, tmp_path / "out", "--batch-size", "30"), "too few"),
        (command(tiny_llava, images, tmp_path / "out", "--purifier", str(images)), "UNet2DModel"),
        (command(tiny_llava, tmp_path / "none", tmp_path / "out", "--mapper-width", "6"), "multiple of 4"),
        (command(tiny_llava, tmp_path / "none", tmp_path / "out", "--purifier-epochs", "inf"), "epochs must be finite"),
        (
            command(tiny_llava, images, tmp_path / "out", "--start-from", "psm", "--purifier", "unet"),
            "networks",
        ),
        (command(tiny_llava, images, tmp_path / "out", "--start-from", "psm", "--mapper-width", "8"), "networks"),
    ):
        done = invoke(arguments)
        assert done.exit_code == 2, done.output
        assert words in done.output
        assert not (tmp_path / "out" / "card.json").exists()
