import json
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import run_here

COMMAND = ("evaluate", "answers")
SMALL = ("--limit", "4", "--samples", "16,24", "--sigmas", "0.1")


def test_the_command_measures_resumes_and_attacks(tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = run_here(*COMMAND, str(results), *SMALL)
    assert done.returncode == 0, done.stderr
    assert "4 questions; votes to take: 4; about" in done.stderr
    assert {path.name for path in results.iterdir()} == {
        "votes.jsonl", "answers.md", "answers.json",
        *(f"{name}.{kind}" for name in ("text", "choices", "text-sigma-0.1", "choices-sigma-0.1")
          for kind in ("png", "svg")),
    }  # fmt: skip
    found = json.loads((results / "answers.json").read_text())
    assert [(one["reading"], one["samples"], one["items"]) for one in found["summaries"]] == [
        ("text", 16, 4), ("text", 24, 4), ("choices", 16, 4), ("choices", 24, 4),
    ]  # fmt: skip
    for curve in found["curves"]:
        assert all(0 < radius <= curve["limit"] for radius in curve["votes"])
    assert len(found["settings"]["items"]) == 4
    votes = (results / "votes.jsonl").read_bytes()

    more = [*COMMAND, str(results), *SMALL[2:], "--limit", "5", "--no-plots"]
    attack = [
        "--attack",
        "1",
        "--steps",
        "1",
        "--restarts",
        "1",
        "--draws",
        "1",
        "--judging",
        "16",
        "--attack-sizes",
        "1",
    ]
    done = run_here(*more, *attack)
    assert done.returncode == 0, done.stderr
    assert "5 questions; votes to take: 1; about" in done.stderr
    assert "at most, with the attacks" in done.stderr
    assert votes.split(b"\n", 1)[1] in (results / "votes.jsonl").read_bytes()
    text = (results / "answers.md").read_text()
    assert "| 0.1 | 1 R | 1 | 0.0% (0.0 to 79.3) |" in text
    assert "1.5 R" not in text

    changed = run_here(*more, "--seed", "3")
    assert changed.returncode == 2
    assert "measured under other settings" in changed.stderr


def test_own_questions(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "question": "Describe the picture.", "answer": "Nothing."},
        {"image": "a.png", "question": "What is it?", "answer": "red", "choices": ["red", "blue"]},
    ]
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(map(json.dumps, lines)))
    done = run_here(*COMMAND, str(tmp_path / "r"), "--items", str(items), *SMALL[2:], "--no-plots")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r" / "answers.json").read_text())
    assert [(one["reading"], one["items"]) for one in found["summaries"]] == [
        ("text", 2), ("text", 2), ("choices", 1), ("choices", 1),
    ]  # fmt: skip
    items.write_text(json.dumps(lines[0]) + "\n{")
    done = run_here(*COMMAND, str(tmp_path / "r"), "--items", str(items))
    assert done.returncode == 2
    assert "line 2: no JSON" in _words(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sigmas", "0"], "--sigmas must be positive"),
        (["--sigmas", "1e-5"], "--sigmas must be at least 0.001"),
        (["--samples", "8,32"], "--samples must be at least 16, not 8: 8 only choose"),
        (["--attack-sizes", "1,0"], "--attack-sizes must be positive"),
        (["--confidence", "1"], "strictly between 0 and 1"),
        (["--attack", "1", "--attack-sigma", "0.3"], "0.3 is not among --sigmas"),
        (["--model", "/no/such/model"], "give yours with --items"),
        (["--attack", "1", "--model", "/no/such/model"], "Invalid value for --model"),
        (["--limit", "10000"], "held-out digits"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = run_here(*COMMAND, str(tmp_path / "results"), *arguments)
    assert done.returncode == 2
    assert words in _words(done.stderr)
    assert not (tmp_path / "results").exists()


def _words(text: str) -> str:
    return " ".join(text.replace("│", " ").split())
