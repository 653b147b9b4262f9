"""The shipped table is what its command builds."""

from pathlib import Path

import numpy as np
import pytest

from fs_runtime.certificate import build_table
from fs_runtime.certificate.dual_optimum import solve_dual
from fs_runtime.certificate.dual_table import DualTable, shipped_table


def test_the_command_builds_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = shipped_table()
    small = build_table.build_table(shipped.log_reach[:4], shipped.slack)
    assert small.location == pytest.approx(shipped.location[:4], abs=1e-6)
    assert small.steepness == pytest.approx(shipped.steepness[:4], abs=1e-6)

    monkeypatch.setattr(build_table, "build_table", lambda: small)
    build_table.main(["--output", str(tmp_path / "table.npz")])
    assert "table.npz" in capsys.readouterr().out
    read = DualTable.load(tmp_path / "table.npz")
    for name in ("log_reach", "slack", "location", "steepness"):
        assert np.array_equal(getattr(read, name), getattr(small, name))


def test_the_shipped_table_covers_what_is_promised() -> None:
    shipped = shipped_table()
    assert np.array_equal(shipped.log_reach, build_table.LOG_REACH)
    assert np.array_equal(shipped.slack, build_table.SLACK)
    assert np.all(np.isfinite(shipped.location))
    assert np.all(np.isfinite(shipped.steepness))


def test_a_solver_that_fails_says_so() -> None:
    with pytest.raises(ArithmeticError, match="no optimal dual point found"):
        solve_dual(2.0, 0.5, (50.0, 40.0))
