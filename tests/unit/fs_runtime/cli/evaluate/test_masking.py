"""``fs-serve evaluate masking`` on the reference model."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fs_runtime import attacks
from fs_runtime.attacks.masking import MaskingCheck, MaskingReport
from tests.commands import app

SMALL = ["evaluate", "masking", "--images", "2", "--steps", "4", "--draws", "2"]


def test_tables_are_printed_and_written(tmp_path: Path) -> None:
    output = tmp_path / "masking.md"
    done = CliRunner().invoke(app, [*SMALL, "--attacks", "apgd-ce-targeted", "--output", str(output)])
    assert done.exit_code == 0, done.output
    text = output.read_text()
    assert "apgd-ce-targeted on 2 images" in text
    checks = (
        "four times the steps",
        "2 draws a step instead of 1",
        "twice the ε",
        "white-box instead of transferred",
    )
    for check in checks:
        assert text.count(f"| {check} |") == 1
    assert all(line in done.stdout for line in text.splitlines())


def test_masked_gradients_are_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    found = MaskingReport("pgd", 3, (MaskingCheck("twice the ε", 0.5, 0.1, 0.01, False),))
    monkeypatch.setattr(attacks, "check_gradient_masking", lambda *_, **__: found)  # this model's are not masked
    done = CliRunner().invoke(app, [*SMALL, "--attacks", "pgd"])
    assert done.exit_code == 1
    assert "| NO |" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--attacks", "pdg"], "'pdg' is not among"),
        (["--norm", "l1"], "'l1' is not one of 'linf', 'l2'"),
        (["--row", "FS + magic"], "'FS + magic' is not among"),
        (["--psm", "none"], "there is no purifier and no mapper"),
        (["--images", "1"], "--images"),
        (["--output", "/no/such/folder/masking.md"], "the folder /no/such/folder does not exist"),
        (["--size", "inf"], "size must be positive and finite"),
        (["--sigma", "inf"], "sigma must be positive and finite"),
        (["--seed", str(2**64)], "--seed"),
    ],
)
def test_mistakes_are_explained(wrong: list[str], says: str) -> None:
    done = CliRunner().invoke(app, [*SMALL, *wrong], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert says in done.output
