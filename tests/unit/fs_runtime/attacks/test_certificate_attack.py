import json

import pytest
import torch
from typer.testing import CliRunner

from fs_runtime.attacks import FeaturePipeline, attack_certificate
from fs_runtime.attacks.certificate_attack import smoothed_similarity
from tests.commands import app

SIGMA = 0.25


@pytest.fixture(scope="module")
def results(smoother, prepared):
    return attack_certificate(
        smoother, prepared[:2], SIGMA, [0.25 * SIGMA, SIGMA], draws=8, steps=5, restarts=1, samples=256
    )


def test_no_attack_beats_the_certificate(results):
    assert [(r.image, r.radius) for r in results] == [(0, 0.0625), (1, 0.0625), (0, 0.25), (1, 0.25)]
    for result in results:
        assert result.holds
        assert 0 < result.certified <= result.at_estimate
        assert result.fcsb <= result.tight <= result.certified
        assert result.standard_error < 0.01


def test_the_attack_is_a_real_one(results, smoother, prepared):
    """It lowers the similarity more than random noise of the same size, and more in a larger ball."""
    small, large = results[0], results[2]
    assert large.reached < small.reached < 1
    pipeline = FeaturePipeline(smoother, SIGMA, prepared[0].grid)
    x = prepared[0].pixels
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    at_random, _ = smoothed_similarity(pipeline, x, x + SIGMA * noise / noise.norm(), 256, seed=1)
    assert 1 - large.reached > 10 * (1 - at_random)


def test_a_broken_bound_is_noticed(smoother, prepared, monkeypatch):
    monkeypatch.setattr("fs_runtime.attacks.certificate_attack.spectral_similarity", lambda *_: 0.99999)
    (result,) = attack_certificate(smoother, prepared[:1], SIGMA, [2 * SIGMA], draws=4, steps=3, restarts=1, samples=64)
    assert not result.holds


def test_estimate_agrees_with_the_plain_one(smoother, prepared):
    """The estimate from common draws agrees with the cosine of two independent means of many draws."""
    pipeline = FeaturePipeline(smoother, 0.1, prepared[0].grid, draws=256, batch_size=64)
    x, other = prepared[0].pixels, prepared[1].pixels
    estimate, error = smoothed_similarity(pipeline, x, other, 256, seed=3)
    first, second = (pipeline.with_options(seed=seed).features(image[None]) for seed, image in ((10, x), (11, other)))
    plain = torch.nn.functional.cosine_similarity(first.flatten(1), second.flatten(1))
    assert estimate == pytest.approx(float(plain), abs=0.01)
    assert 0 < error < 0.01


def test_an_image_is_similar_to_itself(smoother, prepared):
    pipeline = FeaturePipeline(smoother, 0.1, prepared[0].grid)
    x = prepared[0].pixels
    assert smoothed_similarity(pipeline, x, x, 64, seed=0)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "field"), [({"sigma": 0.0}, "sigma"), ({"samples": 8}, "samples"), ({"images": []}, "image")]
)
def test_bad_input_is_named(smoother, prepared, change, field):
    arguments = {"smoother": smoother, "images": prepared[:1], "sigma": SIGMA, "radii": [0.1]} | change
    with pytest.raises(ValueError, match=field):
        attack_certificate(**arguments)


def test_command():
    options = "--images 1 --ratios 0.5 --draws 4 --steps 2 --restarts 1 --samples 64 --device cpu"
    runner = CliRunner()
    done = runner.invoke(app, ["evaluate", "certificate-attack", *options.split(), "--json"])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["held"]
    assert printed["results"][0]["radius"] == 0.125
    table = runner.invoke(app, ["evaluate", "certificate-attack", *options.split()])
    assert "No attack got below a certified bound." in table.output


BAD_OPTIONS = ["--ratios a,b", "--ratios 0", "--ratios nan", "--sigma 0", "--sigma nan", "--confidence 1"]


@pytest.mark.parametrize("options", [*BAD_OPTIONS, f"--seed {2**64}"])
def test_command_names_bad_options(options):
    done = CliRunner().invoke(app, ["evaluate", "certificate-attack", *options.split()])
    assert done.exit_code == 2
    assert options.split()[0].lstrip("-") in done.output
