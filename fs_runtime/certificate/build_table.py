"""Builds the table of dual points that ships with the package: ``python -m fs_runtime.certificate.build_table``.

Takes less than a minute on one core. The result need not be trusted: see :mod:`~fs_runtime.certificate.dual_table`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fs_runtime.certificate.arguments import Array
from fs_runtime.certificate.dual_optimum import solve_dual
from fs_runtime.certificate.dual_table import TABLE_NAME, DualTable

# log reach: ρ from 0.016 to 1 - 6e-13. slack: c from (1 - 1e-8) times the reach down to 1e-4 of it.
LOG_REACH = np.log(np.concatenate([np.geomspace(0.02, 1, 20, endpoint=False), np.linspace(1, 7.2, 40)]))
SLACK = np.linspace(0.01, 0.99997, 100)


def build_table(log_reach: Array = LOG_REACH, slack: Array = SLACK) -> DualTable:
    """Solves for the optimal dual point at each point of the grid, starting from the solutions of its neighbours.

    Args:
        log_reach: First axis of the table, increasing.
        slack: Second axis, increasing, in (0, 1).
    """
    entries = np.empty((len(log_reach), len(slack), 2))
    for row, reach in enumerate(np.exp(log_reach)):
        for column in reversed(range(len(slack))):
            entries[row, column] = solve_dual(float(reach), float(slack[column]), _start(entries, slack, row, column))
    return DualTable(log_reach, slack, entries[..., 0], entries[..., 1])


def _start(entries: Array, slack: Array, row: int, column: int) -> tuple[float, float]:
    last = len(slack) - 1
    if column == last:
        near = entries[row - 1, column] if row else np.asarray([1.0, -4.0])
    elif column == last - 1:
        near = entries[row, column + 1]
    else:  # extrapolates the two solved neighbours
        one, two = entries[row, column + 1], entries[row, column + 2]
        near = one + (one - two) * (slack[column] - slack[column + 1]) / (slack[column + 1] - slack[column + 2])
    return float(near[0]), float(near[1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Builds the table and writes it."""
    parser = argparse.ArgumentParser(description="Build the table of dual points of the tight bound.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name(TABLE_NAME), help="file to write")
    output: Path = parser.parse_args(arguments).output
    build_table().save(output)
    print(f"wrote {output} ({output.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
