"""Progress lines in the log of a long command."""

import io

import pytest
from rich.console import Console

from fs_runtime.system import progress_bar
from fs_runtime.system.progress_bar import ProgressBar


def lines(*, terminal: bool, disable: bool = False) -> list[str]:
    out = io.StringIO()
    with ProgressBar(console=Console(file=out, force_terminal=terminal, width=80), disable=disable) as bar:
        task = bar.add_task("measuring", total=4)
        bar.update(task, completed=1, description="first cell")
        bar.advance(task)
    return [line for line in out.getvalue().splitlines() if "%" in line]


def test_a_log_has_a_line_for_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    at_the_end = lines(terminal=False)
    assert len(at_the_end) == 1  # a command that is done within the minute shows its end alone
    monkeypatch.setattr(progress_bar, "_EVERY", 0.0)
    first, second, end = lines(terminal=False)
    assert "first cell" in first
    assert "25%" in first
    assert "50%" in second
    assert end == at_the_end[0]


def test_a_bar_that_is_off_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_bar, "_EVERY", 0.0)
    assert lines(terminal=False, disable=True) == []


def test_a_terminal_has_the_bar_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = lines(terminal=True)
    monkeypatch.setattr(progress_bar, "_EVERY", 0.0)
    assert len(lines(terminal=True)) == len(before)
