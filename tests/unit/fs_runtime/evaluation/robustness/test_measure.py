"""A small evaluation from end to end, its table, and its resumption."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fs_runtime.attacks import ATTACKS
from fs_runtime.evaluation.intervals import mean, proportion
from fs_runtime.evaluation.robustness import measure as robustness
from fs_runtime.evaluation.robustness.attack_settings import attack_settings
from fs_runtime.evaluation.robustness.cells import NO_ATTACK, Cell, CellFile, CellKey
from fs_runtime.evaluation.robustness.measure import EvaluationPlan, evaluate_robustness
from fs_runtime.evaluation.robustness.report import as_csv, markdown
from fs_runtime.smoothing.smoother import Smoother
from tests.commands import app

SETTINGS = {"images": 4}
PLAN = EvaluationPlan(
    attacks=("pgd", "attackvlm"), norms=("l2",), sizes=(16.0,), samples=(1, 4), radius=0.05, steps=6, draws=2
)


@pytest.fixture(scope="module")
def evaluated(defences, items, answerer, tmp_path_factory):
    file = CellFile(tmp_path_factory.mktemp("cells") / "cells.jsonl", SETTINGS)
    begun = []
    evaluate_robustness(PLAN, defences, items, answerer, file, report=begun.append)
    return file, begun


def cell(file: CellFile, defence: str, attack: str, *, adaptive: bool = False, samples: int = 4) -> Cell:
    norm, size = (None, 0.0) if attack == NO_ATTACK else ("l2", 16.0)
    return file.cells[CellKey(defence, attack, norm, size, adaptive, samples)]


def test_every_cell_is_measured_once(evaluated, defences):
    file, begun = evaluated
    expected = {key for defence in defences for key in PLAN.cells(defence)}
    assert set(file.cells) == expected
    assert len(expected) == 3 + 2 * (1 + 2 * 2)  # clean; each attack: undefended once, FS fixed and adaptive at two n
    assert len([text for text in begun if " on " in text]) == 4


def test_cells_say_what_happened(evaluated):
    file, _ = evaluated
    clean = cell(file, "none", NO_ATTACK, samples=1)
    assert (clean.accuracy.value, clean.changed, clean.reached, clean.similarity.value) == (
        1,
        None,
        None,
        pytest.approx(1),
    )
    attacked = cell(file, "none", "pgd", samples=1)
    assert attacked.changed.value == 1 - attacked.accuracy.value > 0
    assert attacked.reached is None
    assert attacked.similarity.value < 0.7
    assert cell(file, "none", "attackvlm", samples=1).reached is not None
    smoothed = cell(file, "FS", NO_ATTACK)
    assert 0.5 < smoothed.score.value < 1
    assert cell(file, "FS", NO_ATTACK, samples=1).score is None
    fixed, adaptive = (cell(file, "FS", "pgd", adaptive=kind) for kind in (False, True))
    assert adaptive.similarity.value != fixed.similarity.value


def test_a_killed_evaluation_goes_on_where_it_stopped(evaluated, defences, items, answerer, tmp_path):
    """Two finished cells of one attack and half a line are there: only the rest is measured, with the same outcome."""
    file, _ = evaluated
    path = tmp_path / "cells.jsonl"
    lines = file._path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:6]) + lines[6][:40])
    resumed = CellFile(path, SETTINGS)
    kept = set(resumed.cells)
    assert len(kept) == 5
    begun = []
    evaluate_robustness(PLAN, defences, items, answerer, resumed, report=begun.append)
    assert len(path.read_text().splitlines()) == len(lines)
    same = {key: dataclasses.replace(value, seconds=0) for key, value in resumed.cells.items()}
    assert same == {key: dataclasses.replace(value, seconds=0) for key, value in file.cells.items()}
    assert not any(text.startswith("none, n = 1") and "under" not in text for text in begun)


def test_a_finished_evaluation_does_nothing(evaluated, defences, items, answerer):
    begun = []
    evaluate_robustness(PLAN, defences, items, answerer, evaluated[0], report=begun.append)
    assert begun == []


def test_other_settings_are_refused(evaluated):
    with pytest.raises(ValueError, match=r"other settings \(images\)"):
        CellFile(evaluated[0]._path, {"images": 5})


def test_settings_of_some_rows_may_come_later(tmp_path):
    """A robust encoder that is trained while other rows are measured; another one afterwards is refused."""
    path, names = tmp_path / "cells.jsonl", ("robust_encoder",)
    for settings in ({"images": 4, "robust_encoder": None}, {"images": 4, "robust_encoder": "a"}, {"images": 4}):
        CellFile(path, settings, row_specific=names)
    assert json.loads(path.read_text()) == {"settings": {"images": 4, "robust_encoder": "a"}}
    for settings in ({"images": 4, "robust_encoder": "b"}, {"images": None}):
        with pytest.raises(ValueError, match="other settings"):
            CellFile(path, settings, row_specific=names)


def test_attacked_images_are_kept(evaluated, defences, items, answerer, tmp_path):
    """Cells that are lost are measured again from the same images, without another attack."""
    file, _ = evaluated
    made = attacked(file._path.parent)
    labels = ["FS-attackvlm-l2-16-0000", "FS-pgd-l2-16-0000", "none-attackvlm-l2-16-0000", "none-pgd-l2-16-0000"]
    assert [name.rpartition("-")[0] for name in made] == labels
    shutil.copytree(file._path.parent / "attacked", tmp_path / "attacked")
    kept = attacked(tmp_path)
    again = CellFile(tmp_path / "cells.jsonl", SETTINGS)
    evaluate_robustness(PLAN, defences, items, answerer, again)
    assert attacked(tmp_path) == kept
    same = {key: dataclasses.replace(value, seconds=0) for key, value in again.cells.items()}
    assert same == {key: dataclasses.replace(value, seconds=0) for key, value in file.cells.items()}


def attacked(folder: Path) -> dict[str, int]:
    """Files of attacked images with the time of their last change."""
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "attacked").iterdir())}


@pytest.mark.parametrize(
    ("change", "made_anew"),
    [
        ({"samples": (2,), "adaptive_images": 4, "confidence": 0.9, "radius": 0.1}, []),
        ({"draws": 3}, ["FS"]),
        ({"steps": 5}, ["FS", "none"]),
    ],
)
def test_attacked_images_of_other_settings_are_not_used(
    change, made_anew, evaluated, defences, items, answerer, tmp_path
):
    """Even without cells, other settings get other images; n and the report do not matter."""
    shutil.copytree(evaluated[0]._path.parent / "attacked", tmp_path / "attacked")
    kept = attacked(tmp_path)
    plan = dataclasses.replace(PLAN, attacks=("pgd",), samples=(1,))
    file = CellFile(tmp_path / "cells.jsonl", SETTINGS)
    evaluate_robustness(dataclasses.replace(plan, **change), defences, items, answerer, file)
    now = attacked(tmp_path)
    assert kept.items() <= now.items()
    assert sorted(name.partition("-")[0] for name in now.keys() - kept.keys()) == made_anew


def test_attacked_images_of_other_items_are_not_used(evaluated, defences, items, answerer, monkeypatch, tmp_path):
    """Runs with fewer and with more items share images of equal parts; a part with other items is attacked again."""
    monkeypatch.setattr(robustness, "_ATTACKED_AT_ONCE", 2)
    plan = dataclasses.replace(PLAN, attacks=("pgd",), samples=(1,), adaptive=False)
    labels = []
    for run, asked in enumerate((items[:3], items, items[::-1])):
        file = CellFile(tmp_path / "cells.jsonl", SETTINGS)
        evaluate_robustness(plan, defences, asked, answerer, file)
        assert {cell.images for cell in file.cells.values()} == {len(asked)}
        labels.append(sorted(name.rpartition("-")[0][-4:] for name in attacked(tmp_path)))
        (tmp_path / "cells.jsonl").rename(tmp_path / f"{run}.jsonl")
    assert labels == [["0000", "0002"], ["0000", "0002", "0002"], ["0000", "0000", "0002", "0002", "0002"]]


def test_what_an_attack_depends_on(defences, items, answerer):
    undefended, row = defences
    encoder, other = row.smoother.encoder, SimpleNamespace(fingerprint="other")

    def differing(name="pgd", first=row, second=row, *, steps=(6, 6), restarts=(1, 1), **changes):
        attacks = (ATTACKS[name](steps=s, restarts=r) for s, r in zip(steps, restarts, strict=True))
        options = {"answerer": answerer, "draws": 8, "seed": 0}
        one, two = (
            json.loads(json.dumps(attack_settings(source, attack, "l2", 16.0, items, **used)))
            for source, attack, used in zip((first, second), attacks, (options, options | changes), strict=True)
        )
        return [key for key in one if one[key] != two[key]]

    parts = {
        "encoder": Smoother(encoder.with_tower(encoder.tower)),
        "purifier": Smoother(encoder, other),
        "mapper": Smoother(encoder, None, other),
    }
    for part, smoother in parts.items():
        assert differing(second=dataclasses.replace(row, smoother=smoother)) == [part]
    assert differing(second=dataclasses.replace(row, sigma=0.2)) == ["sigma"]
    assert differing(steps=(6, 7)) == differing(restarts=(1, 2)) == ["attack"]
    assert differing(seed=1) == ["seed"]
    assert differing(draws=3) == ["draws"]
    assert differing(first=undefended, second=undefended, draws=3) == []
    assert differing("apgd-ce", answerer=other) == ["language_model"]
    assert differing("pgd", answerer=other) == []


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text("hello\n")
    with pytest.raises(ValueError, match="move it away"):
        CellFile(path, SETTINGS)
    assert path.read_text() == "hello\n"


def test_tables(evaluated):
    cells = list(evaluated[0].cells.values())
    text = markdown(cells)
    assert "## pgd, ℓ2, ε = 16/255" in text
    assert text.count("| FS | 4 |") == 3
    rows = list(csv.DictReader(as_csv(cells).splitlines()))
    assert len(rows) == len(cells)
    assert rows[0]["defence"] == "none"
    assert float(rows[0]["accuracy"]) == 1
    assert float(rows[0]["accuracy_low"]) == pytest.approx(0.5101, abs=1e-3)
    assert rows[0]["changed"] == ""
    assert markdown([]) == "Nothing is measured yet.\n"


def test_plots(evaluated, tmp_path):
    pytest.importorskip("matplotlib")
    from fs_runtime.evaluation.robustness.plots import write_plots

    written = write_plots(list(evaluated[0].cells.values()), tmp_path)
    assert [path.name for path in written] == ["pgd-l2.png", "attackvlm-l2.png", "samples.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_plots_withhold_what_the_table_withholds(evaluated, monkeypatch, tmp_path):
    """A defended row without an adaptive attack has no curve under attack, neither over ε nor over n."""
    pytest.importorskip("matplotlib")
    from matplotlib.axes import Axes

    from fs_runtime.evaluation.robustness.plots import write_plots

    drawn = []
    legend = Axes.legend

    def listening(axes, *arguments, **options):
        drawn.append([text.get_text() for text in legend(axes, *arguments, **options).get_texts()])

    monkeypatch.setattr(Axes, "legend", listening)
    cells = list(evaluated[0].cells.values())
    write_plots([cell for cell in cells if not (cell.key.adaptive and cell.key.attack == "pgd")], tmp_path)
    both = ["FS, attackvlm l2, fixed", "FS, attackvlm l2, adaptive"]
    assert drawn == [
        ["none, fixed"],
        ["none, fixed", "FS, fixed", "FS, adaptive"],
        ["FS"],
        both,
        ["FS"],
    ]


def test_missing_matplotlib_is_explained(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    done = CliRunner().invoke(app, ["evaluate", "robustness", str(tmp_path)], terminal_width=200)
    assert done.exit_code == 2
    assert "fs-serve[plots]" in done.output


def test_tables_go_by_row_and_then_by_samples_whatever_was_measured_first(evaluated):
    cells = list(evaluated[0].cells.values())
    none, smoothed = ([cell for cell in cells if cell.key.defence == name] for name in ("none", "FS"))
    assert markdown(none + smoothed[::-1]).count("| FS | 4 |") == 3
    clean = markdown(none + smoothed[::-1]).partition("## pgd")[0]
    assert clean.index("| none | 1 |") < clean.index("| FS | 1 |") < clean.index("| FS | 4 |")


def test_a_fixed_attack_is_not_shown_without_the_adaptive_one(evaluated):
    cells = [cell for cell in evaluated[0].cells.values() if not cell.key.adaptive]
    text = markdown(cells)
    assert text.count("| FS | 4 | not measured | |") == 2
    assert text.count("| none | 1 | 4, – | ") == 2


def test_fewer_images_and_steps_for_adaptive_attacks(defences, items, answerer, tmp_path):
    plan = dataclasses.replace(PLAN, attacks=("apgd-ce",), samples=(2,), adaptive_images=3, adaptive_steps=2)
    file = CellFile(tmp_path / "cells.jsonl", SETTINGS)
    evaluate_robustness(plan, defences, items, answerer, file)
    fixed, adaptive = (cell(file, "FS", "apgd-ce", adaptive=kind, samples=2) for kind in (False, True))
    assert (fixed.images, adaptive.images) == (4, 3)
    assert (plan.attack("apgd-ce").steps, plan.attack("apgd-ce", adaptive=True).steps) == (6, 2)
    assert "| FS | 2 | 4, 3 |" in markdown(list(file.cells.values()))


def test_a_robust_encoder_is_attacked_itself_though_it_has_no_noise(defences):
    row = dataclasses.replace(defences[0], name="robust encoder")
    adaptive = [key for key in PLAN.cells(row) if key.adaptive]
    assert len(adaptive) == 2
    assert {key.samples for key in adaptive} == {1}


def test_a_row_that_answers_nothing_correctly_has_no_share_of_changed_answers(tmp_path):
    key = CellKey("FS", "pgd", "linf", 8.0, True, 1)
    bare = Cell(key, 4, proportion(0, 4), None, None, mean([0.5]), mean([0.0]), None, 0.1, 0.05)
    file = CellFile(tmp_path / "cells.jsonl", SETTINGS)
    file.add(bare)
    assert CellFile(tmp_path / "cells.jsonl", SETTINGS).cells == {key: bare}
    assert "| FS | 1 | –, 4 | – | – |" in markdown([bare])


def test_the_undefended_row_comes_first(defences, items, answerer, tmp_path):
    with pytest.raises(ValueError, match="'none'"):
        evaluate_robustness(PLAN, defences[1:], items, answerer, CellFile(tmp_path / "c.jsonl", SETTINGS))


def test_command(answerer, tmp_path):
    options = "--images 4 --samples 2 --attacks apgd --norms linf --sizes 8 --steps 2 --draws 2 --no-plots --device cpu"
    options += " --psm none --robust-encoder none"
    done = CliRunner().invoke(app, ["evaluate", "robustness", str(tmp_path), *options.split()])
    assert done.exit_code == 0, done.output
    assert "row 'FS + PSM' is left out" in done.output
    assert "## apgd, ℓ∞, ε = 8/255" in (tmp_path / "robustness.md").read_text()
    head = json.loads((tmp_path / "cells.jsonl").read_text().splitlines()[0])
    assert head["settings"]["images"] == 4
    assert head["settings"]["language_model"] == answerer.fingerprint
    assert (tmp_path / "robustness.csv").is_file()
    assert torch.is_grad_enabled()


def test_command_says_what_it_cannot_write(tmp_path):
    (tmp_path / "attacked").touch()  # where a folder should be
    options = "--images 2 --samples 1 --attacks apgd --norms linf --sizes 8 --steps 1 --rows FS --no-adaptive"
    options += " --no-plots --device cpu --psm none --robust-encoder none"
    done = CliRunner().invoke(app, ["evaluate", "robustness", str(tmp_path), *options.split()])
    assert done.exit_code == 2, done.output
    assert "cannot write" in done.output


@pytest.mark.parametrize("seed", [2**24, 2**100])
def test_any_seed_will_do(seed, defences, items, answerer, tmp_path):
    file = CellFile(tmp_path / "cells.jsonl", SETTINGS)
    plan = EvaluationPlan(attacks=(), norms=(), sizes=(), samples=(2,), radius=0.05, seed=seed)
    evaluate_robustness(plan, defences, items[:2], answerer, file)
    assert set(file.cells) == {key for defence in defences for key in plan.cells(defence)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--attacks fgsm", "attacks"),
        ("--norms l1", "norms"),
        ("--kinds taste", "kinds"),
        ("--sizes 0", "sizes"),
        ("--sizes 8,nan", "sizes"),
        ("--sizes inf", "sizes"),
        ("--samples x", "samples"),
        ("--sigma 0", "sigma"),
        ("--sigma nan", "sigma"),
        ("--sigma inf", "sigma"),
        ("--confidence 1", "confidence"),
        ("--confidence nan", "confidence"),
        ("--radius 0", "radius"),
        ("--radius nan", "radius"),
    ],
)
def test_command_names_bad_options(options, message, tmp_path):
    done = CliRunner().invoke(app, ["evaluate", "robustness", str(tmp_path), "--no-plots", *options.split()])
    assert done.exit_code == 2
    assert message in done.output
