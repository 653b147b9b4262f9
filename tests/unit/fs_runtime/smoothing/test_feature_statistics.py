"""Files of feature statistics: those of other versions, and what is no such file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.feature_statistics import (
    FeatureStatistics,
    Floor,
    NoiseLevel,
    StatisticsCard,
    StatisticsError,
)

CARD = StatisticsCard("sha256:e", None, None, 0.25, 16, 8)
FLOORS = (Floor(0.5, 0.75), Floor(0.0, 0.25))
HIGHER = (Floor(0.6, 0.8), Floor(0.1, 0.3))


def level(sigma: float, fidelity: float) -> NoiseLevel:
    return NoiseLevel(sigma, 0.9, fidelity, fidelity, fidelity, {"encoder": HIGHER, "projector": HIGHER})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    centres = {("encoder", None): torch.ones(1, 3), ("projector", None): torch.ones(1, 4)}
    FeatureStatistics(CARD, centres, {"encoder": FLOORS, "projector": FLOORS}).save(tmp_path / "statistics")  # type: ignore[arg-type]
    return tmp_path / "statistics"


def rewritten(file: Path, **changes: Any) -> Path:
    """The file with other metadata; None takes an entry away."""
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        metadata = {**opened.metadata(), **changes}
    save_file(tensors, file, {name: value for name, value in metadata.items() if value is not None})
    return file


def test_what_was_saved_is_read(file: Path) -> None:
    found = FeatureStatistics.load(file)
    assert found.card == CARD
    assert found.floor_at(FeatureMap("encoder", True), 0.25) == FLOORS[1]
    assert found.floor_at(FeatureMap("encoder", True), 0.2) is None


def test_a_file_from_before_there_were_versions_is_read(file: Path) -> None:
    saved = FeatureStatistics.load(file)
    old = FeatureStatistics.load(rewritten(file, version=None))
    assert (old.card, old.fingerprint) == (saved.card, saved.fingerprint)


def test_fields_that_came_later_are_left_aside(file: Path) -> None:
    card = json.dumps({**dataclasses.asdict(CARD), "photographs": 200})
    floors = json.dumps({stage: [{"mean": 0.5, "high": 0.75, "low": 0.1}] * 2 for stage in ("encoder", "projector")})
    found = FeatureStatistics.load(rewritten(file, card=card, floors=floors))
    assert found.card == CARD
    assert found.floor(FeatureMap("projector")) == FLOORS[0]


def test_a_later_version_is_not_guessed_at(file: Path) -> None:
    with pytest.raises(StatisticsError, match=r"version 2, this fs-serve reads up to 1; update it"):
        FeatureStatistics.load(rewritten(file, version="2"))


@pytest.mark.parametrize(
    "changes", [{"version": "x"}, {"card": None}, {"card": "[1]"}, {"floors": "{}"}, {"card": '{"sigma": 1}'}]
)
def test_what_is_no_such_file(file: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(StatisticsError, match="holds no feature statistics"):
        FeatureStatistics.load(rewritten(file, **changes))


def test_noise_levels_survive_the_file(file: Path) -> None:
    levels = [level(0.5, 0.7), level(0.1, 0.99), level(0.2, 0.96)]
    FeatureStatistics.load(file).with_levels(levels).save(file)
    found = FeatureStatistics.load(file)
    assert [each.sigma for each in found.levels] == [0.1, 0.2, 0.5]
    assert found.levels[2] == levels[0]
    assert found.floor_at(FeatureMap("encoder", True), 0.2) == HIGHER[1]
    assert found.floor_at(FeatureMap("encoder", True), 0.25) == FLOORS[1]
    assert found.floor_at(FeatureMap("encoder", True), 0.3) is None
    assert FeatureStatistics.load(rewritten(file, levels=None)).levels == ()
    with pytest.raises(StatisticsError, match="holds no feature statistics"):
        FeatureStatistics.load(rewritten(file, levels='[{"sigma": 0.1}]'))


@pytest.mark.parametrize(
    ("fidelities", "least", "sigma"),
    [
        ((0.99, 0.96, 0.7), 0.95, 0.2),
        ((0.99, 0.94, 0.96), 0.95, 0.1),  # one lucky level beyond is not trusted
        ((0.9, 0.8, 0.7), 0.95, None),
        ((), 0.95, None),
    ],
)
def test_the_largest_noise_level_that_leaves_enough(
    file: Path, fidelities: tuple[float, ...], least: float, sigma: float | None
) -> None:
    levels = [level(at, fidelity) for at, fidelity in zip((0.1, 0.2, 0.4), fidelities, strict=False)]
    assert FeatureStatistics.load(file).with_levels(levels).largest_sigma(least) == sigma
