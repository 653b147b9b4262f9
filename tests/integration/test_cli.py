"""The command as a person uses it, with the model that ships: in processes of its own where it keeps what is theirs."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fs_runtime.reference import example_images
from tests.child_process import WITH_PARENT
from tests.child_process import environment as inherited
from tests.commands import run_here
from tests.forked_process import forks_with_libraries

COMMAND = [sys.executable, "-m", "server.cli"]
IMAGE = str(example_images()["red-circle"])
RED = "What colour is the circle?"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own, which imports everything but the largest libraries anew."""
    environment = inherited() | {"COLUMNS": "200", "TERM": "dumb", "OMP_NUM_THREADS": "1"} | variables
    return forks_with_libraries().run("server.cli", *arguments, environment=environment)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """`fs-serve serve` on its embedded default: its address, and the request that it prints."""
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*WITH_PARENT, *COMMAND, "serve", "--port", "0", "--drain-lead", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=inherited(),
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    try:
        lines: list[str] = []
        while not (lines and lines[-1].endswith("\"'\"}}]}]}'\n")):
            line = process.stdout.readline()
            assert line, f"the server ended early: {log.read_text()}"
            lines.append(line)
        greeting = "".join(lines)
        address = re.search(r"http://127\.0\.0\.1:\d+", greeting)
        assert address is not None
        yield address.group(), greeting[greeting.index("curl") :]
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        process.stdout.close()
    for line in log.read_text().splitlines():
        json.loads(line)  # away from a terminal, every line of the log is JSON


def test_the_request_that_serve_prints_works_when_pasted(served: tuple[str, str]) -> None:
    done = subprocess.run(["bash", "-c", served[1]], capture_output=True, text=True, timeout=120, check=True)
    answer = json.loads(done.stdout)
    assert "red circle" in answer["choices"][0]["message"]["content"].lower()
    (certificate,) = answer["robustness"]["images"]
    assert certificate["certified"] is True
    assert 0.5 < certificate["smoothed"]["best"] <= 1


@pytest.mark.parametrize("remote", [True, False])
def test_ask(served: tuple[str, str], remote: bool) -> None:
    arguments = ["ask", IMAGE, RED] + (["--url", served[0]] if remote else [])
    people = run(*arguments)
    assert people.returncode == 0, people.stderr
    assert "red" in people.stdout.lower()
    assert "cosine similarity of at least 0." in people.stdout
    program = run(*arguments, "--json", "--samples", "288")  # a gateway that has 256 in its cache adds to them
    answer: dict[str, Any] = json.loads(program.stdout)
    assert answer["robustness"]["images"][0]["samples"] == 288


@pytest.mark.parametrize("remote", [True, False])
def test_ask_certifies_the_answer(served: tuple[str, str], remote: bool) -> None:
    arguments = ["ask", "--certify", "--samples", "64", IMAGE, RED] + (["--url", served[0]] if remote else [])
    people = run(*arguments)
    assert people.returncode == 0, people.stderr
    shown = " ".join(people.stdout.split())
    assert shown.startswith("The circle is red. Certified: 64 noisy copies were asked about; 100.0% of the votes")
    assert re.search(
        r"within an ℓ2 distance of 0\.\d{4} of this one as the model reads it, or \d\.\d{4} as sent", shown
    )
    assert re.search(r"for example, 1/255 in each colour of [\d,]+ pixels, or \d+/255 of \d", shown)
    choices = [part for colour in ("red", "blue") for part in ("--choices", f"The circle is {colour}.")]
    program = run(*arguments, *choices, "--radius", "0.125", "--json")
    reply: dict[str, Any] = json.loads(program.stdout)
    assert reply["choices"][0]["message"]["content"] == "The circle is red."
    assert reply["usage"]["completion_tokens"] > 0
    assert (reply["robustness"]["answer"]["function"], reply["robustness"]["answer"]["samples"]) == ("choices", 32)


def test_ask_says_why_an_answer_is_not_certified(served: tuple[str, str]) -> None:
    far = run("ask", "--certify", "--pattern", r"is (\w+)", "--radius", "1", IMAGE, RED, "--url", served[0])
    assert far.returncode == 1
    assert "What counts of it: red" in far.stdout
    assert re.search(
        r"\d noisy copies were asked about; [\d.]+% of the votes agree\. Not certified at radius 1: ", far.stdout
    )
    refused = run("ask", "--certify", "--choices", "one", IMAGE, RED, "--url", served[0])
    assert (refused.returncode, "error 400: robustness.answer.choices" in refused.stderr) == (1, True)
    alone = run("ask", "--pattern", "a", IMAGE, RED)
    assert alone.returncode == 2
    assert "add --certify" in alone.stderr


def test_ask_reports_errors(served: tuple[str, str], tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    failed = run("ask", str(text), "What?", "--url", served[0])
    assert failed.returncode == 1
    assert "415" in failed.stderr
    nobody = run("ask", IMAGE, "What?", "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1
    assert "no gateway answers" in nobody.stderr


def test_certify() -> None:
    people = run_here("certify", IMAGE, "--samples", "64")
    assert people.returncode == 0, people.stderr
    assert "cosine similarity at that radius" in people.stdout
    program = run_here("certify", IMAGE, "--samples", "64", "--sigma", "0.2", "--radius", "0.05", "--json")
    certificate = json.loads(program.stdout)
    assert certificate["samples"] == 64
    assert certificate["sigma"] == 0.2
    assert certificate["radius"]["model"] == 0.05


def test_certify_says_whether_the_asked_similarity_was_reached() -> None:
    missed = run_here("certify", IMAGE, "--min-similarity", "0.9999")
    assert missed.returncode == 1
    assert "NOT reached" in missed.stdout
    reached = run_here("certify", IMAGE, "--min-similarity", "0.5", "--radius", "0.01")
    assert reached.returncode == 0
    assert "reached; sampling ended there" in reached.stdout


def test_certify_shows_all_bounds_and_draws_them(tmp_path: Path) -> None:
    done = run_here("certify", IMAGE, "--samples", "64", "--radius", "0.02", "--plot", str(tmp_path / "plot.png"))
    assert done.returncode == 0, done.stderr
    for word in ("spectral", "tight", "FCSB", "ρ, lower bound", "floor", "99.8"):
        assert word in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"plot.png", "plot.svg"}
    assert "plot.svg" in done.stderr


def test_evaluate_features(tmp_path: Path) -> None:
    small = ("evaluate", "features", "--count", "6", "--samples", "2", "--sigma", "0.1", "--sigmas", "0.05,0.4")
    done = run_here(*small, "--json", "--output", str(tmp_path), "--plot", str(tmp_path / "curve"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["levels"]) == ["with purifier and mapper", "without purifier"]
    low, high = found["levels"]["without purifier"]
    assert (low["sigma"], high["sigma"]) == (0.05, 0.4)
    assert low["token_fidelity"] > high["token_fidelity"]
    assert low["floors"]["encoder"][0]["mean"] < high["floors"]["encoder"][0]["mean"]
    assert found["card"]["images"] == 6
    floors = {(floor["stage"], floor["centred"]): floor["mean"] for floor in found["floors"]}
    assert floors["encoder", True] < floors["encoder", False]
    names = {"feature_statistics.safetensors", "curve.png", "curve.svg"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_variable_that_is_misspelt_starts_nothing() -> None:
    done = run("serve", FS_MIN_SIMILARITIES="0.8")
    assert done.returncode == 2
    assert done.stderr == "there is no setting FS_MIN_SIMILARITIES; is FS_MIN_SIMILARITY meant?\n"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["certify", "/no/such/file.png"], "does not exist"),
        (["certify", __file__], "not a picture"),
        (["certify", IMAGE, "--confidence", "1"], "between 0 and 1"),
        (["certify", IMAGE, "--sigma", "-1"], "sigma"),
        (["serve", "--sigma", "-1"], "sigma"),
        (["serve", "--smaples", "3"], "smaples"),
        (["serve", "--config", "/no/such/file.yaml"], "does not exist"),
        (["serve", "--model", "/no/such/folder"], "does not exist"),
        (["certify", IMAGE, "--model", "/no/such/folder"], "does not exist"),
        (["ask", IMAGE, "What?", "--model", "/no/such/folder"], "does not exist"),
        (["certify", IMAGE, "--sigma", "1e-9"], "at least 0.001"),
        (["certify", IMAGE, "--radius", "inf"], "radius"),
        (["certify", IMAGE, "--plot", "/no/such/folder/x"], "does not exist"),
        (["certify", IMAGE, "--device", "cuda:99"], "cuda:99"),
        (["certify", IMAGE, "--dtype", "int8"], "float32"),
        (["bench", "smoothing", "--shape", "round"], "unknown shape"),
        (["bench", "smoothing", "--batch-sizes", "a,b"], "whole numbers"),
        (["bench", "smoothing", "--image-samples", "0"], "at least 1"),
        (["bench", "certify", "--shape", "round"], "unknown shape"),
        (["bench", "certify", "--samples", "1,x"], "--samples takes whole numbers"),
        (["bench", "bets", "--alphas", "0.05,2"], "between 0 and 1"),
        (["bench", "bets", "--sigmas", "a"], "separated by commas"),
        (["bench", "bets", "--sigmas", "0"], "above 0"),
        (["evaluate", "features", "--images", "/no/such/folder"], "is not a folder"),
        (["evaluate", "features", "--output", "/no/such/folder"], "is not a folder"),
        (["evaluate", "features", "--output", "/no/such/x.safetensors"], "is not a folder"),
        (["evaluate", "features", "--sigmas", "0.1,-1"], "--sigmas must be positive"),
        (["evaluate", "features", "--sigma", "inf"], "sigma must be finite"),
        (["nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], word: str) -> None:
    done = (run if arguments[0] in ("serve", "ask") else run_here)(*arguments)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_for_people() -> None:
    text = run_here("--help").stdout
    for command in ("serve", "ask", "certify", "bench", "train", "evaluate"):
        assert command in text
    settings = run("serve", "--help").stdout
    for flag in ("--port", "--samples", "--vllm-url", "--min-similarity"):
        assert flag in settings
    assert "bombs" in settings  # the reasons are there too
    assert re.match(r"\d+\.\d+", run_here("--version").stdout)


def test_help_loads_no_torch() -> None:
    script = (
        "import sys; from server.cli import main; sys.argv = ['', '--help']\ntry: main()\nfinally: print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert "typer" in done.stdout.split()
    assert not {"torch", "scipy", "transformers", "fastapi"} & set(done.stdout.split())


def test_bench_smoothing(tmp_path: Path) -> None:
    small = ("bench", "smoothing", "--samples", "32", "--batch-sizes", "8,16", "--rounds", "1", "--psm", "auto")
    done = run_here(*small, "--image-samples", "20,33", "--json", "--output", str(tmp_path / "pass"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "pass.json").read_text())
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}
    assert found["parts"] == "purifier, encoder, mapper"
    assert found["batch_size"] in (8, 16)
    assert found["of_bare"] == pytest.approx(found["smoothing"] / found["bare"])  # of one round
    assert min(found["bare"], found["smoothing"], found["plain_loop"]) > 0
    assert found["image_seconds"].keys() == {"20", "33"}
    assert found["flop_utilisation"] == pytest.approx(found["sample_flops"] * found["smoothing"] / found["peak_flops"])


def test_bench_smoothing_in_several_ways(tmp_path: Path) -> None:
    small = ("bench", "smoothing", "--samples", "8", "--batch-sizes", "8", "--rounds", "1")
    done = run_here(*small, "--quantization", "none,fp8", "--json", "--output", str(tmp_path / "ways"))
    assert done.returncode == 0, done.stderr
    eager, float8 = json.loads(done.stdout)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}
    assert (eager["way"], float8["way"]) == ("eager", "fp8, eager")
    assert (eager["found"]["quantization"], float8["found"]["quantization"]) == (None, "fp8")
    assert float8["of_first_bare"] == pytest.approx(float8["found"]["smoothing"] / eager["found"]["bare"])
    assert "fp8, eager: " in done.stderr  # told before the table
    wrong = run_here(*small, "--compile", "none,fast")
    assert wrong.returncode == 2
    assert "max-autotune-no-cudagraphs" in wrong.stderr.replace("\n", "")


def test_bench_bets() -> None:
    small = ("bench", "bets", "--samples", "64", "--alphas", "0.05", "--sigmas", "0.25", "--streams", "2")
    people = run_here(*small)
    assert people.returncode == 0, people.stderr
    assert "features, σ = 0.25, token" in people.stdout
    program = json.loads(run_here(*small, "--json").stdout)
    assert {row["samples"] for row in program["deficits"]} == {32, 64}
    assert all(0 < row["deficit"] <= 1 for row in program["deficits"])
    assert all(row["state_bytes"] > 0 for row in program["costs"])


def test_two_gateways_cannot_share_a_port(served: tuple[str, str]) -> None:
    port = httpx.URL(served[0]).port
    done = run("serve", "--port", str(port))
    assert done.returncode != 0
    assert "in use" in done.stderr


def test_bench_serve_against_a_running_gateway_and_one_of_its_own(served: tuple[str, str], tmp_path: Path) -> None:
    small = ("--clients", "3", "--samples", "4", "--large-samples", "64", "--repeats", "2", "--rounds", "2")
    there = run("bench", "serve", "--url", served[0], *small)
    assert there.returncode == 0, there.stderr
    assert "cached image" in there.stdout
    done = run("bench", "serve", *small, "--psm", "none", "--json", "--output", str(tmp_path / "serve"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}
    assert found["crowd"]["count"] == 6
    assert found["over_ideal"] > 0
    assert 0 < found["cached"]["p50"] <= found["cached"]["p99"] <= found["cached"]["most"]
    gone = run("bench", "serve", "--url", "http://127.0.0.1:9", *small)
    assert gone.returncode == 1
    assert "no gateway answers" in gone.stderr


def test_bench_certify(tmp_path: Path) -> None:
    small = ("bench", "certify", "--psm", "none", "--similarities", "0.3,0.999999", "--samples", "16,64")
    done = run_here(*small, "--confidence", "0.9", "--json", "--output", str(tmp_path / "certify"))
    assert done.returncode == 0, done.stderr
    rows = {(row["similarity"], row["way"], row["max_samples"]): row for row in json.loads(done.stdout)}
    assert len(rows) == 6
    assert rows[0.3, "adaptive", 64]["certified"] >= rows[0.3, "fixed", 16]["certified"]
    assert rows[0.999999, "adaptive", 64]["samples"] < 64  # out of reach, and given up
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}
