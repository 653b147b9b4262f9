"""Training a PSM and attacking it work for every family: tiles, any resolution, class tokens, several depths."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from fs_runtime.attacks import ATTACKS, FeaturePipeline, ThreatModel, run_attack
from fs_runtime.cli.train.psm import train
from fs_runtime.encoders import FAMILIES, PreparedImage
from fs_runtime.loading.engine import load_smoother
from fs_runtime.psm.storage import PsmError
from fs_runtime.smoothing.smoother import Smoother
from tests.integration.families import CASES
from tests.integration.tiny_llava import build_tiny_llava
from tests.unit.fs_runtime.encoders.test_clip import write

SIGMA = 0.2
SIZES = [(101, 61), (64, 131), (112, 112), (40, 201), (77, 70), (90, 30), (61, 101)]

BUILDERS: dict[str, Callable[[Path], object]] = {
    "llava": build_tiny_llava,
    **{case.model_type: case.build for case in CASES},
    **{
        kind: lambda folder, kind=kind: write(folder, kind)
        for kind in ("clip", "clip_vision_model", "siglip", "siglip_vision_model")
    },
}


def test_every_family_with_an_adapter_is_here() -> None:
    assert set(BUILDERS) == {name for name, family in FAMILIES.items() if family.adapter}


@pytest.fixture(scope="module", params=BUILDERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "model"
    BUILDERS[request.param](folder)
    return folder


@pytest.fixture(scope="module")
def psm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by the command: two steps for each of the two networks, on pictures of different sizes."""
    folder = tmp_path_factory.mktemp("psm")
    images = folder / "images"
    images.mkdir()
    for number, size in enumerate(SIZES):
        Image.fromarray(picture(size, number)).save(images / f"{number}.png")
    application = typer.Typer()
    application.command("psm")(train)
    application.command("other")(lambda: None)  # a second command, so that the first needs its name
    options = {
        "--model": model,
        "--images": images,
        "--output": folder / "out",
        "--batch-size": 3,
        "--purifier-epochs": 1,
        "--mapper-epochs": 1,
        "--mapper-width": 8,
        "--sigma": SIGMA,
        "--device": "cpu",
    }
    done = CliRunner().invoke(application, ["psm", *(str(word) for pair in options.items() for word in pair)])
    assert done.exit_code == 0, done.output
    return folder / "out"


@pytest.fixture(scope="module")
def smoother(model: Path, psm: Path) -> Smoother:
    """As the server loads it."""
    return load_smoother(str(model), psm=str(psm), device="cpu", dtype="float32")


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_the_trained_psm_is_served(smoother: Smoother) -> None:
    assert smoother.sigma == SIGMA
    for size in SIZES[:3]:
        image = smoother.encoder.prepare(picture(size, 9))
        state = smoother.start(image, SIGMA, 0)
        smoother.step([(state, 4)])
        bare = Smoother(smoother.encoder)
        without = bare.start(image, SIGMA, 0)
        bare.step([(without, 4)])
        assert state.feature_sum is not None
        assert without.feature_sum is not None
        assert bool(torch.isfinite(state.feature_sum).all())
        assert not torch.allclose(state.feature_sum, without.feature_sum)  # both networks learned something
        smoother.encoder.payload(smoother.finish(state).embeddings, image)


def test_another_encoder_refuses_it(psm: Path, tmp_path: Path) -> None:
    other = build_tiny_llava(tmp_path / "other", seed=5)
    with pytest.raises(PsmError, match="trained for another encoder"):
        load_smoother(str(other), psm=str(psm), device="cpu")


@pytest.mark.parametrize("name", [name for name in ATTACKS if not name.startswith("apgd-")])  # those need answers
def test_a_step_of_each_attack(smoother: Smoother, name: str) -> None:
    image, target = (smoother.encoder.prepare(picture(SIZES[0], seed)) for seed in (20, 21))
    x, goal = image.pixels[None], target.pixels[None]
    threat = ThreatModel.of_size("l2", 8 / 255, image.pixels.shape)
    # Fixed draws: fresh ones would be compared with a mean of many, which costs more and tells nothing here.
    pipeline = FeaturePipeline(smoother, SIGMA, image.grid, draws=2, fixed=True)
    found = run_attack(ATTACKS[name](steps=1), [pipeline], x, threat, targets=goal)
    assert found.shape == x.shape
    assert bool(torch.isfinite(found).all())
    assert 0 < float(threat.size(found - x)) <= threat.epsilon * (1 + 1e-5)
    tiles = (found - x)[0].reshape(-1, *found.shape[-3:])
    assert all(float(tile.abs().max()) > 0 for tile in tiles)  # every tile was reached


def test_gradients_reach_every_part_of_the_picture(smoother: Smoother) -> None:
    image: PreparedImage = smoother.encoder.prepare(picture(SIZES[0], 20))
    x = image.pixels[None]
    pipeline = FeaturePipeline(smoother, SIGMA, image.grid, draws=2, fixed=True)
    _, gradient = pipeline.value_and_gradient(x, pipeline.features(x * 0.9), lambda a, b: -(a * b).sum((-1, -2)))
    assert bool(torch.isfinite(gradient).all())
    assert float((gradient != 0).float().mean()) > 0.99
