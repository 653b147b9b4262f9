import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cosine_similarity, normalize

from fs_runtime.certificate import NormConfidenceSequence, tight_similarity
from fs_runtime.encoders import VisionEncoder
from fs_runtime.evaluation.photographs.cells import PhotographCell, PhotographFile, PhotographKey
from fs_runtime.evaluation.photographs.encoders import EvaluatedEncoder
from fs_runtime.evaluation.photographs.measure import PhotographRun, settings_of
from fs_runtime.evaluation.photographs.pictures import Photograph
from fs_runtime.evaluation.photographs.plan import PhotographPlan
from fs_runtime.evaluation.photographs.plots import write_plots
from fs_runtime.evaluation.photographs.report import write_report
from fs_runtime.evaluation.seeds import seed_of
from fs_runtime.smoothing.noise import NoiseStream
from tests.unit.fs_runtime.evaluation.photographs.conftest import HalfwayToGrey

PLAN = PhotographPlan(
    sigmas=(0.2, 0.4),
    samples=7,
    confidence=0.9,
    seed=11,
    attack_images=4,
    steps=6,
    draws=3,
    adaptive=("tiny",),
    attack_sigmas=(0.2,),
)
PURIFIERS = {"none": None, "grey": HalfwayToGrey()}


class Stopped(Exception):
    """Stands for whatever ends a process."""


def measured(
    folder: Path,
    encoder: EvaluatedEncoder,
    photographs: Sequence[Photograph],
    plan: PhotographPlan = PLAN,
    purifiers: dict[str, Any] = PURIFIERS,
    stop_after: int | None = None,
) -> PhotographFile:
    file = PhotographFile(folder / "cells.jsonl", settings_of(plan, [encoder], purifiers, photographs))
    run = PhotographRun(plan, [encoder], purifiers, photographs, file, batch_size=3, gradient_batch_size=6)
    calls = 0

    def advance(seconds: float, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise Stopped

    run.measure(advance)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photographs")


@pytest.fixture(scope="module")
def file(folder: Path, classifier: EvaluatedEncoder, photographs: list[Photograph]) -> PhotographFile:
    torch.set_num_threads(1)
    return measured(folder, classifier, photographs)


def cell(file: PhotographFile, *key: Any) -> PhotographCell:
    return file.results[PhotographKey("tiny", *key)]


def copies_of(photograph: Photograph, pixels: torch.Tensor, sigma: float, purifier: Any) -> torch.Tensor:
    """The noisy copies of a picture, as purified."""
    noise = torch.empty(PLAN.samples, *pixels.shape)
    NoiseStream(seed_of(PLAN.seed, "noise", photograph.name), torch.device("cpu")).draw(noise)
    noisy = pixels + sigma * noise
    return noisy if purifier is None else purifier(noisy, torch.full((len(noisy),), sigma))


def stacked(features: torch.Tensor) -> torch.Tensor:
    return normalize(normalize(features, dim=-1).flatten(-2), dim=-1)


def expected(
    encoder: VisionEncoder,
    photographs: Sequence[Photograph],
    number: int,
    sent: torch.Tensor,
    sigma: float,
    purifier: Any,
) -> dict[str, float]:
    """Every value of one smoothed picture, computed without the code under test."""
    photograph = photographs[number]
    own = encoder.prepare(photograph.read()).pixels
    features = encoder.encode(copies_of(photograph, sent, sigma, purifier))
    unit = normalize(features, dim=-1)
    mean = unit.mean(0)
    served = normalize(mean, dim=-1) * features.norm(dim=-1).mean(0)[:, None]
    guesses = encoder.project(features, (4, 4)).flatten(1).argmax(1).tolist()
    values: dict[str, float] = {
        "top1_copy": float(np.mean([guess == photograph.label for guess in guesses])),
        "top1_smoothed": float(int(encoder.project(served, (4, 4)).argmax()) == photograph.label),
        "top1_vote": float(Counter(guesses).most_common(1)[0][0] == photograph.label),
    }
    for prefix, pixels in (("", sent), ("clean_", own)):
        by_token = cosine_similarity(mean, encoder.encode(pixels[None])[0], dim=-1)
        clean = normalize(encoder.encode(pixels[None])[0], dim=-1)
        values[f"{prefix}fidelity"] = float(cosine_similarity(mean.flatten(), clean.flatten(), dim=0))
        values[f"{prefix}token_fidelity"] = float(by_token[1:].mean())
        values[f"{prefix}class_token_fidelity"] = float(by_token[0])
    n, tokens = len(unit), unit.shape[1]
    directions = unit.flatten(1) / tokens**0.5
    values["norm"] = max(0.0, float((directions.sum(0).square().sum() - n) / (n * (n - 1)))) ** 0.5
    sequence = NormConfidenceSequence(PLAN.confidence)
    before = directions.cumsum(0)[:-1]
    sequence.update((directions[1:] * normalize(before, dim=1)).sum(1).double().numpy())
    values["certified"] = tight_similarity(sequence.lower, sigma / 2, sigma)
    values["certified_estimate"] = tight_similarity(values["norm"], sigma / 2, sigma)
    others = torch.stack([stacked(encoder.encode(encoder.prepare(p.read()).pixels[None])[0]) for p in photographs])
    values["retrieval"] = float(int((others @ normalize(mean.flatten(), dim=0)).argmax()) == number)
    return values


@pytest.mark.parametrize("sigma", PLAN.sigmas)
@pytest.mark.parametrize("purifier", PURIFIERS)
def test_every_value_is_that_of_a_direct_computation(
    file: PhotographFile, classifier: EvaluatedEncoder, photographs: list[Photograph], purifier: str, sigma: float
) -> None:
    found = cell(file, purifier, sigma).values
    for number, photograph in enumerate(photographs):
        own = classifier.encoder.prepare(photograph.read()).pixels
        wanted = expected(classifier.encoder, photographs, number, own, sigma, PURIFIERS[purifier])
        wanted = {name: value for name, value in wanted.items() if not name.startswith("clean_")}
        assert {name: values[number] for name, values in found.items()} == pytest.approx(wanted, abs=2e-5)
    assert found["certified"] != found["certified_estimate"]


def test_the_encoder_without_smoothing_is_a_row(file: PhotographFile, photographs: list[Photograph]) -> None:
    found = cell(file, "none", 0.0).values
    assert found == {
        "top1_copy": [1, 1, 1, 1, 1, 0],
        "top1_smoothed": [1, 1, 1, 1, 1, 0],
        "top1_vote": [1, 1, 1, 1, 1, 0],
        "retrieval": [1] * len(photographs),
    }


def test_attacked_pictures_are_compared_with_what_was_sent_and_with_the_clean_ones(
    file: PhotographFile, classifier: EvaluatedEncoder, photographs: list[Photograph], folder: Path
) -> None:
    (path,) = (folder / "attacked").glob("tiny-fixed-linf-0.0314-*")
    sent = load_file(path)
    assert list(sent) == ["0", "1", "2", "3"]
    found = cell(file, "grey", 0.2, "fixed", "linf", 8 / 255).values
    for number in range(PLAN.attack_images):
        pixels = sent[str(number)]
        own = classifier.encoder.prepare(photographs[number].read()).pixels
        assert 0.9 * 8 / 255 < float((pixels - own).abs().max()) <= 8 / 255 + 1e-6
        wanted = expected(classifier.encoder, photographs, number, pixels, 0.2, PURIFIERS["grey"])
        assert {name: values[number] for name, values in found.items()} == pytest.approx(wanted, abs=2e-5)
    assert found["fidelity"] != found["clean_fidelity"]


def test_fixed_attacks_turn_the_encoder_and_adaptive_ones_the_smoothed_one(
    classifier: EvaluatedEncoder, photographs: list[Photograph], tmp_path: Path
) -> None:
    plan = dataclasses.replace(PLAN, sigmas=(0.2,), steps=25, draws=8, attack_images=6)
    file = measured(tmp_path, classifier, photographs, plan)
    bare = cell(file, "none", 0.0, "fixed", "linf", 8 / 255).values
    assert sum(bare["top1_smoothed"]) < 5
    assert np.mean(bare["clean_fidelity"]) < 0.999
    assert "fidelity" not in bare  # nothing is smoothed
    fixed, adaptive = (
        np.mean(cell(file, "grey", 0.2, kind, "l2", 0.2).values["top1_copy"]) for kind in ("fixed", "adaptive")
    )
    without = np.mean(cell(file, "grey", 0.2).values["top1_copy"])
    assert adaptive < without
    assert adaptive <= fixed


def test_only_pictures_of_fixed_attacks_are_kept(file: PhotographFile, folder: Path) -> None:
    kept = sorted(path.name.rsplit("-", 1)[0] for path in (folder / "attacked").iterdir())
    assert kept == [
        f"tiny-fixed-{ball}-0000"
        for ball in ("l2-0.1000", "l2-0.2000", "linf-0.0157", "linf-0.0314")
    ]  # fmt: skip
    adaptive = [one.key for one in file.cells if one.key.attack == "adaptive"]
    assert len(adaptive) == 2 * 4
    assert {key.sigma for key in adaptive} == {0.2}


@pytest.mark.parametrize("stop_after", [3, 40, 100, 180])
def test_an_interrupted_measurement_ends_with_the_same_file(
    file: PhotographFile,
    classifier: EvaluatedEncoder,
    photographs: list[Photograph],
    folder: Path,
    tmp_path: Path,
    stop_after: int,
) -> None:
    with pytest.raises(Stopped):
        measured(tmp_path, classifier, photographs, stop_after=stop_after)
    cells = tmp_path / "cells.jsonl"
    partial = cells.read_bytes()
    cells.write_bytes(partial + b'{"key": {"enc')  # killed while it wrote
    assert partial < (folder / "cells.jsonl").read_bytes()
    measured(tmp_path, classifier, photographs)
    assert cells.read_bytes() == (folder / "cells.jsonl").read_bytes()


@pytest.mark.usefixtures("file")
@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"samples": 8}, "samples"),
        ({"seed": 12}, "seed"),
        ({"confidence": 0.95}, "confidence"),
        ({"steps": 7}, "steps"),
        ({"draws": 4}, "draws"),
        ({"attack_images": 3}, "attack_images"),
    ],
)
def test_other_settings_are_refused(
    classifier: EvaluatedEncoder, photographs: list[Photograph], folder: Path, change: dict[str, Any], word: str
) -> None:
    plan = dataclasses.replace(PLAN, **change)
    with pytest.raises(ValueError, match=rf"measured under other settings \({word}\)"):
        PhotographFile(folder / "cells.jsonl", settings_of(plan, [classifier], PURIFIERS, photographs))


@pytest.mark.usefixtures("file")
def test_other_pictures_and_other_parts_of_one_name_are_refused(
    classifier: EvaluatedEncoder, photographs: list[Photograph], folder: Path
) -> None:
    other = HalfwayToGrey()
    other.fingerprint = "sha256:other"
    relabelled = [dataclasses.replace(photographs[0], label=None), *photographs[1:]]
    for purifiers, pictures, word in (
        (PURIFIERS, photographs[:5], "pictures"),
        (PURIFIERS, relabelled, "pictures"),
        ({"none": None, "grey": other}, photographs, "parts purifier grey"),
    ):
        with pytest.raises(ValueError, match=rf"measured under other settings \({word}\)"):
            PhotographFile(folder / "cells.jsonl", settings_of(PLAN, [classifier], purifiers, pictures))


def test_purifiers_and_noise_levels_may_be_added_later(
    file: PhotographFile, classifier: EvaluatedEncoder, photographs: list[Photograph], tmp_path: Path
) -> None:
    few = dataclasses.replace(PLAN, sigmas=(0.2,), attacks=False)
    first = measured(tmp_path, classifier, photographs, few, {"none": None})
    assert len(first.results) == 2
    more = measured(tmp_path, classifier, photographs, dataclasses.replace(PLAN, attacks=False))
    assert set(more.results) == {key for key in file.results if key.attack == "none"}
    assert all(more.results[key] == file.results[key] for key in more.results)


def test_without_classes_there_is_no_top_1_and_attacks_are_on_features(
    classifier: EvaluatedEncoder, photographs: list[Photograph], tmp_path: Path
) -> None:
    unlabelled = [dataclasses.replace(one, label=None) for one in photographs]
    plan = dataclasses.replace(PLAN, sigmas=(0.2,), adaptive=())
    file = measured(tmp_path, classifier, unlabelled, plan, {"none": None})
    assert not any(name.startswith("top1") for one in file.cells for name in one.values)
    small, large = (
        np.mean(cell(file, "none", 0.0, "fixed", "linf", size / 255).values["clean_fidelity"]) for size in (4, 8)
    )
    assert large < small < 0.9999


def test_the_estimated_time_is_that_of_what_is_missing(
    classifier: EvaluatedEncoder, photographs: list[Photograph], tmp_path: Path
) -> None:
    plan = dataclasses.replace(PLAN, sigmas=(0.2,))
    file = PhotographFile(tmp_path / "cells.jsonl", settings_of(plan, [classifier], PURIFIERS, photographs))
    run = PhotographRun(plan, [classifier], PURIFIERS, photographs, file)
    done: list[float] = []
    total = run.seconds
    run.measure(lambda seconds, _text: done.append(seconds))
    assert sum(done) == pytest.approx(total)
    assert run.seconds == 0
    assert PhotographRun(plan, [classifier], PURIFIERS, photographs, file).missing == []


def test_reports_and_plots_show_both_meanings_of_fidelity(file: PhotographFile, tmp_path: Path) -> None:
    equal = NormConfidenceSequence(PLAN.confidence)
    equal.update(np.ones(PLAN.samples - 1))
    written = write_report(tmp_path, file.cells, file.settings)
    text = written[0].read_text()
    for words in (
        "6 photographs, n = 7 noisy copies each, seed 11",
        "The first 4 pictures; APGD, 6 steps",
        "3 fresh copies behind each gradient",
        "| ℓ∞ 8/255 | adaptive | 0.2 | grey |",
        "to the picture *as sent*",
        "grey − without smoothing",
        f"7 copies prove no ρ above {equal.lower:.2f}",
    ):
        assert words in text
    assert "fixed ones alone flatter" not in text
    table = next(line for line in text.splitlines() if line.startswith("| 0.2 | none |"))
    share = np.mean(cell(file, "none", 0.2).values["top1_smoothed"])
    assert f"| {100 * share:.1f}% (" in table
    pytest.importorskip("matplotlib")
    assert {path.name for path in write_plots(tmp_path, file.cells)} == {
        "tiny-top1.png", "tiny-fidelity.png", "tiny-adaptive-l2.png", "tiny-adaptive-linf.png",
    }  # fmt: skip
    assert (tmp_path / "tiny-adaptive-linf.svg").is_file()
