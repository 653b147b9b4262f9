"""The robustness table as Markdown, fixed and adaptive attacks side by side, and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
from typing import TypeVar

from fs_runtime.evaluation.intervals import Estimate
from fs_runtime.evaluation.robustness.cells import NO_ATTACK, Cell, CellKey, withheld

_Value = TypeVar("_Value")
_NORM_SIGNS = {"linf": "ℓ∞", "l2": "ℓ2"}
_ESTIMATES = ("accuracy", "changed", "reached", "similarity", "certified", "score")


def markdown(cells: Sequence[Cell]) -> str:
    """All cells as Markdown: rows without attack, then one table for each attack, norm and size."""
    if not cells:
        return "Nothing is measured yet.\n"
    first = cells[0]
    lines = [
        "# Robustness",
        "",
        "All items are answered correctly by the undefended model. In brackets 95% confidence intervals: Wilson's for "
        "shares, Student's for means. *Changed*: share of answers, right without attack, that the attack made wrong. "
        "*Target*: share of answers that are the target's. *Fixed* attacks were made on the undefended model, "
        "*adaptive* ones on the row itself, with fresh noise at every step where it has noise; for the undefended row "
        "the two are one. A defended row whose adaptive attack is not measured yet is left blank: its fixed one alone "
        "would flatter it. *Images* are those of the fixed and of the adaptive cell. ℓ2 balls reach as far as the "
        f"corners of the ℓ∞ ball of the stated ε. Certified similarity is at ℓ2 radius {first.radius:g}.",
        "",
        "## Without attack",
        "",
        "| row | n | images | accuracy | certified similarity | Gaussian robustness score | ms per image |",
        "|---|---:|---:|---|---|---|---:|",
    ]
    rows = _in_order(c.key.defence for c in cells)
    cells = sorted(cells, key=lambda cell: (rows.index(cell.key.defence), cell.key.samples))
    clean = [cell for cell in cells if cell.key.attack == NO_ATTACK]
    for cell in clean:
        columns = [_share(cell.accuracy), _number(cell.certified), _number(cell.score), f"{1000 * cell.seconds:.1f}"]
        lines.append(f"| {cell.key.defence} | {cell.key.samples} | {cell.images} | {' | '.join(columns)} |")
    found, hidden = {cell.key: cell for cell in cells}, withheld(cells)
    for attack, norm, size in _in_order((c.key.attack, c.key.norm, c.key.size) for c in cells):
        if attack == NO_ATTACK or norm is None:
            continue
        lines += [
            "",
            f"## {attack}, {_NORM_SIGNS[norm]}, ε = {size:g}/255",
            "",
            "| row | n | images | changed, fixed | changed, adaptive | target, fixed | target, adaptive "
            "| accuracy, fixed | accuracy, adaptive | similarity, fixed | similarity, adaptive |",
            "|---|---:|---:|---|---|---|---|---|---|---|---|",
        ]
        for defence, samples in _in_order((c.key.defence, c.key.samples) for c in cells):
            keys = [CellKey(defence, attack, norm, size, adaptive, samples) for adaptive in (False, True)]
            pair = [found.get(key) for key in keys]
            if not any(pair):
                continue
            if keys[0] in hidden:
                lines.append(f"| {defence} | {samples} | not measured{' |' * 9}")
                continue
            columns = [_share(cell.changed if cell else None) for cell in pair]
            columns += [_share(cell.reached if cell else None) for cell in pair]
            columns += [_share(cell.accuracy if cell else None) for cell in pair]
            columns += [_number(cell.similarity if cell else None) for cell in pair]
            images = ", ".join(str(cell.images) if cell else "–" for cell in pair)
            lines.append(f"| {defence} | {samples} | {images} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def as_csv(cells: Sequence[Cell]) -> str:
    """The cells as CSV, one line each, with the ends of all intervals; missing values are empty."""
    names = [f"{name}{end}" for name in _ESTIMATES for end in ("", "_low", "_high")]
    keys = [field.name for field in dataclasses.fields(CellKey)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*keys, "images", *names, "seconds", "radius"])
    for cell in cells:
        values: list[float | str] = []
        for name in _ESTIMATES:
            estimate: Estimate | None = getattr(cell, name)
            values += ["", "", ""] if estimate is None else [estimate.value, estimate.low, estimate.high]
        key = dataclasses.astuple(cell.key)
        writer.writerow(["" if k is None else k for k in key] + [cell.images, *values, cell.seconds, cell.radius])
    return out.getvalue()


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{100 * estimate.value:.1f}% ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _number(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def _in_order(values: Iterable[_Value]) -> list[_Value]:
    """Distinct values in order of appearance."""
    return list(dict.fromkeys(values))
