"""The comparison of certificates computes ours as the server does, and says where they cross the paper's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from fs_runtime.certificate import fcsb, score_from_norm, spectral_similarity
from fs_runtime.engine import SmoothingEngine
from fs_runtime.evaluation.certificates.compare import (
    COMPARED_BOUNDS,
    OURS,
    PAPER,
    RATIOS,
    Row,
    certify_samples,
    crossings_of,
    stacked_features,
)
from fs_runtime.loading.engine import load_smoother
from fs_runtime.reference import reference_model_path
from tests.asked import asked
from tests.commands import app


def test_ours_is_what_the_server_certifies(picture: NDArray[np.uint8]) -> None:
    smoother = load_smoother(str(reference_model_path()), psm="none", device="cpu")
    steps: list[int] = []
    features = stacked_features(smoother, picture, 0.1, 5, 96, steps.append)
    assert sum(steps) == len(features) == 96
    assert features.square().sum(1).numpy() == pytest.approx(np.ones(96), abs=1e-5)
    found = certify_samples(features, [32, 96], np.array(RATIOS), 0.001)
    engine = SmoothingEngine(smoother, batch_size=40)
    try:
        for count in (32, 96):
            result = engine.submit(*asked(picture, 0.1, count, 0.999, seed=5, spectral=True)).result()
            assert result.spread is not None
            norm = float(np.max(result.norm_lower))
            best = spectral_similarity(norm, result.spread, 0.1 * np.array(RATIOS), 0.1)
            assert found[count][OURS] == pytest.approx(best, abs=1e-5)
            whole = engine.submit(*asked(picture, 0.1, count, 0.999, seed=5)).result()
            paper_formula = fcsb(score_from_norm(float(np.max(whole.norm_lower))), 0.1 * np.array(RATIOS), 0.1)
            assert found[count]["FCSB"] == pytest.approx(paper_formula, abs=1e-5)
    finally:
        engine.close()
    mean = features.mean(0).norm().item()
    assert found[96][PAPER] == pytest.approx(fcsb((1 + mean) / 2, np.array(RATIOS), 1.0), abs=1e-5)


def test_rotating_features_have_the_bounds_their_law_allows() -> None:
    """f = (cos a z, sin a z) with ρ = exp(-a² / 2) and cos(g(x), g(x')) = cos(a c): every bound of it lies below."""
    a, ratios = 0.3, np.array(RATIOS)
    z = torch.from_numpy(np.random.default_rng(2).standard_normal(512)).float()
    found = certify_samples(torch.stack([torch.cos(a * z), torch.sin(a * z)], dim=1), [64, 512], ratios, 0.001)
    assert set(found[512]) == set(COMPARED_BOUNDS)
    for bound, values in found[512].items():
        assert np.all(values <= np.cos(a * ratios) + 1e-3), bound
        assert np.all(np.diff(values) <= 0), bound
        assert values[0] > 0.3, bound
    assert np.all(found[64][OURS] <= found[512][OURS])


def test_crossing_is_where_ours_stays_above() -> None:
    rows = [
        Row(False, bound, count, 0.5, similarity, 1.0)
        for bound, similarities in ((PAPER, (0.8, 0.8, 0.8, 0.8)), (OURS, (0.9, 0.7, 0.81, 0.9)))
        for count, similarity in zip((32, 64, 128, 256), similarities, strict=True)
    ]
    assert [crossing.samples for crossing in crossings_of(rows)] == [128]
    never = [Row(True, bound, 32, 1.0, 0.5, 1.0) for bound in (PAPER, OURS)]
    assert [crossing.samples for crossing in crossings_of(never)] == [None]


def test_command(tmp_path: Path) -> None:
    markdown = tmp_path / "table.md"
    small = ["evaluate", "certificates", "--images", "2", "--samples", "64"]
    outputs = ["--json", "--markdown", str(markdown), "--plot", str(tmp_path / "plot")]
    result = CliRunner().invoke(app, small + outputs)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["images"], found["sigma"], found["confidence"]) == (2, 0.25, 0.999)
    assert len(found["rows"]) == 2 * 2 * len(COMPARED_BOUNDS) * len(RATIOS)  # with and without PSM, n = 32 and 64
    assert len(found["crossings"]) == 2 * len(RATIOS)
    similarity = {(row["psm"], row["bound"], row["samples"], row["ratio"]): row["similarity"] for row in found["rows"]}
    assert similarity[True, OURS, 64, 0.25] > similarity[True, "FCSB", 64, 0.25] > 0
    text = markdown.read_text()
    assert f"{similarity[True, 'tight', 64, 0.25]:.3f} / " in text
    assert all(f"| {bound} |" in text for bound in COMPARED_BOUNDS)
    assert "<svg" in (tmp_path / "plot.svg").read_text()
    with Image.open(tmp_path / "plot.png") as image:
        assert image.width > 1000


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--confidence", "1"),
        ("--sigma", "0"),
        ("--sigma", "nan"),
        ("--markdown", "/no/such/folder/tables.md"),
        ("--plot", "/no/such/folder/plot"),
    ],
)
def test_command_refuses(option: str, value: str) -> None:
    result = CliRunner().invoke(app, ["evaluate", "certificates", option, value])
    assert result.exit_code == 2
    assert option[2:] in result.output
