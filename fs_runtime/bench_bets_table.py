"""The tables that ``fs-serve bench bets`` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.table import Table

from fs_runtime.bench_bets import Cost, Deficit


def deficit_tables(deficits: Sequence[Deficit]) -> Iterator[Table]:
    """For each law and α the deficits by number of samples; at the end all of them, relative to the best scheme's."""
    found = {(row.law, row.alpha, row.scheme, row.samples): row.deficit for row in deficits}
    laws, alphas, schemes, counts = (list(dict.fromkeys(part)) for part in zip(*found, strict=True))
    for law in laws:
        for alpha in alphas:
            table = Table("ρ - lower bound", *(f"n = {n}" for n in counts), title=f"{law}, α = {alpha:g}")
            for scheme in schemes:
                table.add_row(scheme, *(f"{found[law, alpha, scheme, n]:.4f}" for n in counts))
            yield table
    summary = Table(
        "scheme", *laws, title="ρ - lower bound, as a multiple of the best scheme's (geometric mean over n and α)"
    )
    for scheme in schemes:
        ratios = [
            [
                found[law, a, scheme, n] / min(found[law, a, other, n] for other in schemes)
                for a in alphas
                for n in counts
            ]
            for law in laws
        ]
        summary.add_row(scheme, *(f"{np.exp(np.mean(np.log(values))):.3f}" for values in ratios))
    yield summary


def cost_table(costs: Sequence[Cost]) -> Table:
    """Time of 256 samples, and memory."""
    table = Table("scheme", "streams", "processor time of 256 samples", "bytes kept for each stream")
    for cost in costs:
        table.add_row(cost.scheme, str(cost.streams), f"{1e3 * cost.seconds:.3g} ms", str(cost.state_bytes))
    return table
