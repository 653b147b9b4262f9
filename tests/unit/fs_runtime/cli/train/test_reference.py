"""The commands pass their options on, save what they trained, and say by their exit status whether it is good."""

import json

import pytest
from typer.testing import CliRunner

from fs_runtime.reference.evaluate import AnswerScore, Evaluation, Mistake
from fs_runtime.reference.questions import SCENE_KINDS
from fs_runtime.reference.tokenizer import train_tokenizer
from tests.commands import app

runner = CliRunner()
GOOD = Evaluation(tuple(AnswerScore(kind, 99, 100) for kind in (*SCENE_KINDS, "digit")), ())
BAD = Evaluation(
    tuple(AnswerScore(kind, 80, 100) for kind in (*SCENE_KINDS, "digit")),
    (Mistake("colour", "What colour?", "Red.", "Blue."),),
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(conversations=200)


@pytest.fixture
def evaluated(monkeypatch):
    """Make measuring return at once; the list holds the arguments of each call."""
    calls = []
    result = {"evaluation": GOOD}

    def evaluate(folder, questions, device, report):
        calls.append((folder, questions, device))
        report(1, 2)
        return result["evaluation"]

    monkeypatch.setattr("fs_runtime.reference.evaluate.evaluate_reference", evaluate)
    return calls, result


def test_train_saves_a_model_and_measures_it(tokenizer, tmp_path, monkeypatch, evaluated):
    monkeypatch.setattr("fs_runtime.reference.train.train_tokenizer", lambda: tokenizer)
    options = "--steps 2 --vision-steps 1 --batch-size 1 --workers 0 --device cpu --questions 9"
    done = runner.invoke(app, ["train", "reference", str(tmp_path / "model"), *options.split()])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert evaluated[0] == [(tmp_path / "model", 9, "cpu")]


def test_train_can_leave_measuring_out(tokenizer, tmp_path, monkeypatch, evaluated):
    monkeypatch.setattr("fs_runtime.reference.train.train_tokenizer", lambda: tokenizer)
    options = "--steps 1 --vision-steps 1 --batch-size 1 --workers 0 --device cpu --questions 0"
    assert runner.invoke(app, ["train", "reference", str(tmp_path), *options.split()]).exit_code == 0
    assert evaluated[0] == []


def test_evaluate_reports_success(evaluated):
    done = runner.invoke(app, ["evaluate", "reference", "--device", "cpu"])
    assert done.exit_code == 0
    assert "Reached." in done.output
    assert evaluated[0][0][1:] == (400, "cpu")


def test_evaluate_fails_where_the_model_falls_short(evaluated, tmp_path):
    evaluated[1]["evaluation"] = BAD
    done = runner.invoke(app, ["evaluate", "reference", "--device", "cpu", "--model", str(tmp_path), "--mistakes", "3"])
    assert done.exit_code == 1
    assert "Not reached." in done.output
    assert "[colour] What colour? → Blue. (not: Red.)" in done.output


def test_evaluate_prints_json(evaluated, tmp_path):
    evaluated[1]["evaluation"] = BAD
    done = runner.invoke(app, ["evaluate", "reference", "--device", "cpu", "--model", str(tmp_path), "--json"])
    printed = json.loads(done.stdout)
    assert printed["passed"] is False
    assert printed["required"]["digit"] == {"accuracy": 0.8, "required": 0.95}
    assert printed["scores"][0]["kind"] == "colour"
    assert printed["scores"][0]["right"] == 80
