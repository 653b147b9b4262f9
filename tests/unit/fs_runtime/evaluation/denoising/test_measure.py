"""Purifiers on photographs: what is measured, what is kept, and what the report says about it."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from fs_runtime.encoders import VisionEncoder
from fs_runtime.evaluation.denoising.cost import ENCODER, measure_costs
from fs_runtime.evaluation.denoising.denoisers import BM3D, NOISY, NamedDenoiser, baselines, purifier_denoiser
from fs_runtime.evaluation.denoising.measure import DenoisingScore, ScoreFile, cases, clean_image, measure, noisy_image
from fs_runtime.evaluation.denoising.photographs import named_pictures, photographs
from fs_runtime.evaluation.denoising.report import as_csv, as_json, markdown, side_by_side, summarise
from fs_runtime.evaluation.intervals import mean
from fs_runtime.psm.storage import save_purifier
from fs_runtime.psm.unet import UNetConfig, UNetPurifier
from tests.commands import app

SIDE = 32


@pytest.fixture
def pictures() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(Image.fromarray(rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((60, 40)))
        for name in ("one", "two", "three")
    }


def identity(name: str, factor: float = 1.0, version: str = "1") -> NamedDenoiser:
    return NamedDenoiser(name, version, lambda noisy, sigma: (0.5 + factor * (noisy - 0.5)).astype(np.float32))


def test_the_photographs_are_there_without_a_download() -> None:
    found = photographs()
    assert set(found) == {
        *("astronaut", "chelsea", "coffee", "rocket", "motorcycle", "china", "flower", "grace_hopper")
    }  # fmt: skip
    assert all(
        picture.ndim == 3 and picture.shape[2] == 3 and min(picture.shape[:2]) >= 300 for picture in found.values()
    )


def test_noise_is_fixed_not_clipped_and_scales(pictures: dict[str, NDArray[np.uint8]]) -> None:
    low, high, again = (cases(pictures, [SIDE], [sigma], 1)[0] for sigma in (0.25, 0.5, 0.25))
    clean = clean_image(pictures["one"], SIDE)
    noisy = noisy_image(clean, low)
    assert np.array_equal(noisy, noisy_image(clean, again))
    np.testing.assert_allclose(2 * (noisy - clean), noisy_image(clean, high) - clean, atol=1e-6)
    assert (noisy - clean).std() == pytest.approx(0.25, rel=0.05)
    assert noisy.min() < 0
    assert noisy.max() > 1
    other = dataclasses.replace(low, draw=1)
    assert abs(np.corrcoef((noisy - clean).ravel(), (noisy_image(clean, other) - clean).ravel())[0, 1]) < 0.1


def test_outputs_are_clipped_before_they_are_scored(tmp_path: Path) -> None:
    grey = {"grey": np.full((SIDE, SIDE, 3), 128, np.uint8)}
    small, large = cases(grey, [SIDE], [0.02, 0.5], 1)
    scores = measure(grey, [small, large], [identity(NOISY)], ScoreFile(tmp_path))
    assert scores[0].psnr == pytest.approx(-20 * math.log10(0.02), abs=0.2)
    assert scores[1].psnr > -20 * math.log10(0.5) + 1
    assert 0 < scores[1].ssim < scores[0].ssim < 1


def test_what_is_measured_is_kept(pictures: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    ran: list[str] = []

    def counting(name: str, version: str) -> NamedDenoiser:
        def run(noisy: Any, sigma: float) -> Any:
            ran.append(name)
            return noisy

        return NamedDenoiser(name, version, run)

    wanted = cases(pictures, [SIDE], [0.25], 2)
    first = measure(pictures, wanted, [counting("a", "1")], ScoreFile(tmp_path))
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write('{"case": {"pict')  # a kill
    again = measure(pictures, wanted, [counting("a", "1"), counting("b", "1")], ScoreFile(tmp_path))
    assert ran == ["a"] * 6 + ["b"] * 6
    assert [score for score in again if score.denoiser == "a"] == first
    measure(pictures, wanted, [counting("a", "2")], ScoreFile(tmp_path))  # other weights under the same name
    assert ran[12:] == ["a"] * 6
    changed = pictures | {"one": 255 - pictures["one"]}
    measure(changed, cases(changed, [SIDE], [0.25], 2), [counting("a", "2")], ScoreFile(tmp_path))
    assert len(ran) == 18 + 2  # another picture under the same name
    ScoreFile(tmp_path).output(first[0]).unlink()
    measure(pictures, wanted, [counting("a", "1")], ScoreFile(tmp_path))
    assert len(ran) == 21  # the grid needs its output
    (tmp_path / "scores.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match="move it away"):
        ScoreFile(tmp_path)


def test_classical_denoisers_denoise() -> None:
    picture = {"chelsea": photographs()["chelsea"]}
    wanted = cases(picture, [96], [0.1], 1)
    known, _ = baselines()
    known = [one for one in known if one.name != BM3D]
    clean = clean_image(picture["chelsea"], 96)
    errors = {one.name: float(np.square(one.run(noisy_image(clean, wanted[0]), 0.1) - clean).mean()) for one in known}
    assert errors[NOISY] == pytest.approx(0.01, rel=0.05)
    assert all(error < 0.3 * errors[NOISY] for name, error in errors.items() if name != NOISY)


def test_without_bm3d_the_report_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bm3d", None)
    rows, left_out = baselines()
    assert BM3D not in [row.name for row in rows]
    assert "non-commercial" in left_out[0]


def test_bm3d_denoises() -> None:
    pytest.importorskip("bm3d", reason="its licence keeps it out of the development packages")
    (row,) = (one for one in baselines()[0] if one.name == BM3D)
    clean = clean_image(photographs()["chelsea"], 64)
    noisy = clean + 0.1 * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)
    assert float(np.square(row.run(noisy, 0.1) - clean).mean()) < 0.2 * 0.01


def test_a_purifier_is_told_the_noise_level() -> None:
    torch.manual_seed(0)
    purifier = UNetPurifier(UNetConfig(widths=(8,)))
    row = purifier_denoiser("p", purifier)
    noisy = np.random.default_rng(0).random((20, 24, 3), dtype=np.float32)
    x = torch.from_numpy(noisy).permute(2, 0, 1)[None]
    for sigma in (0.1, 0.5):
        expected = purifier(x, torch.tensor([sigma]))[0].permute(1, 2, 0).detach().numpy()
        np.testing.assert_array_equal(row.run(noisy, sigma), expected)
    assert not np.allclose(row.run(noisy, 0.1), row.run(noisy, 0.5), atol=1e-3)


def a_score(picture: str, denoiser: str, psnr: float, draw: int = 0) -> DenoisingScore:
    (case,) = (
        one for one in cases({picture: np.zeros((9, 9, 3), np.uint8)}, [8], [0.25], draw + 1) if one.draw == draw
    )
    return DenoisingScore(case, denoiser, "1", psnr, psnr / 100, 1.0)


def test_differences_to_bm3d_are_paired_by_picture() -> None:
    scores = [a_score("a", BM3D, 20), a_score("b", BM3D, 30), a_score("a", "p", 21), a_score("b", "p", 31.5)]
    scores += [
        a_score("a", BM3D, 22, 1),
        a_score("b", BM3D, 30, 1),
        a_score("a", "p", 23, 1),
        a_score("b", "p", 30.5, 1),
    ]
    reference, ours = summarise(scores)
    assert reference.over_bm3d is None
    assert ours.psnr == mean([22, 31])  # the draws of a picture are one value
    assert ours.over_bm3d == mean([1.0, 1.0])
    assert ours.over_bm3d.low == ours.over_bm3d.high == 1  # though the pictures are 9 dB apart
    assert summarise(scores[2:4])[0].over_bm3d is None
    text = markdown(scores, None)
    assert "| p | 26.50 / 0.265 (+1.00: +1.00 to +1.00) |" in text
    assert "12.04 dB at 0.25" in text
    assert as_csv(scores).count("\n") == 9
    assert json.loads(as_json(scores, None))["summaries"][1]["over_bm3d"]["value"] == 1


def test_outputs_stand_side_by_side(pictures: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    file = ScoreFile(tmp_path)
    scores = measure(pictures, cases(pictures, [SIDE], [0.1], 1), [identity(NOISY), identity("grey", 0.0)], file)
    grid = side_by_side(pictures, scores, file, [NOISY, "grey"], side=SIDE, sigma=0.1)
    assert grid.size == (3 * SIDE + 8, 24 + 3 * SIDE + 8)
    clean = np.asarray(grid)[24 : 24 + SIDE, -SIDE:]
    np.testing.assert_array_equal(clean, np.rint(255 * clean_image(pictures["one"], SIDE)))
    assert np.asarray(grid)[30, SIDE + 10].tolist() == [128, 128, 128]


def test_costs_are_beside_the_encoders(encoder: VisionEncoder) -> None:
    purifiers = {str(width): UNetPurifier(UNetConfig(widths=(width,))) for width in (8, 32)}
    costs = measure_costs(encoder, purifiers, batch_size=2, rounds=3)
    assert [row.name for row in costs.rows] == [ENCODER, "8", "32"]
    whole, small, large = costs.rows
    assert whole.flops_share == whole.seconds_share == 1
    assert small.parameters == sum(weight.numel() for weight in purifiers["8"].parameters())
    assert large.flops_share == large.flops / whole.flops > small.flops_share
    assert f"| 32 | {large.parameters:,} |" in markdown([a_score("a", BM3D, 20)], costs)


def test_pictures_of_a_folder_are_told_apart(pictures: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    """Each has a name of its own, and its outputs have places of their own."""
    paths = dict(zip(("a/b.png", "a-b.png", "a-/b.png"), pictures.values(), strict=True))
    for path, pixels in paths.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "in" / path)
    found = named_pictures(tmp_path / "in")
    assert found.keys() == paths.keys()
    assert all(np.array_equal(found[path], pixels) for path, pixels in paths.items())
    file = ScoreFile(tmp_path / "out")
    scores = measure(found, cases(found, [SIDE], [0.1], 1), [identity(NOISY)], file)
    assert len({file.output(score) for score in scores}) == 3
    assert all(file.output(score).is_file() for score in scores)


def test_the_command_measures_a_folder(pictures: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "pictures" / "deep" / f"{name}.png")
    assert set(named_pictures(tmp_path / "pictures")) == {f"deep/{name}.png" for name in pictures}
    save_purifier(
        tmp_path / "mine", UNetPurifier(UNetConfig(widths=(8,))), {"sigma": {"served": 0.25, "trained": [0.1, 0.5]}}
    )
    arguments = ["evaluate", "purifier", str(tmp_path / "out"), "--pictures", str(tmp_path / "pictures")]
    arguments += ["--purifier", str(tmp_path / "mine"), "--no-baselines", "--sides", "32", "--rounds", "0"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"denoising.md", "denoising.csv", "denoising.json", "pictures-0.25.jpg", "pictures-0.1.jpg"}
    assert "| mine |" in (tmp_path / "out" / "denoising.md").read_text()
    for extra, words in (
        (["--purifier", str(tmp_path / "mine")], "two are called 'mine'"),
        (["--sigma", "0"], "must be positive"),
        (["--sides", "10"], "sides must be at least 11"),
        (["--pictures", str(tmp_path / "out" / "outputs" / "none")], "is not a folder"),
    ):
        failed = CliRunner().invoke(app, arguments + extra)
        assert failed.exit_code == 2, failed.output
        assert words in " ".join(failed.output.replace("│", " ").split())
