"""Plots of the robustness table; the extra ``plots`` installs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fs_runtime.evaluation.plotting import require_matplotlib
from fs_runtime.evaluation.robustness.cells import NO_ATTACK, Cell, withheld


def write_plots(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Draws attack success over ε, and accuracy, success and latency over n where several n were measured.

    Cells that the table withholds are left out.

    Args:
        cells: Finished cells.
        folder: For the PNG files.

    Returns:
        The files written.

    Raises:
        PlottingError: matplotlib is not installed.
    """
    written, hidden = [], withheld(cells)
    cells = [cell for cell in cells if cell.key not in hidden]
    attacks = dict.fromkeys((c.key.attack, c.key.norm) for c in cells if c.key.attack != NO_ATTACK)
    most = {c.key.defence: max(d.key.samples for d in cells if d.key.defence == c.key.defence) for c in cells}
    for attack, norm in attacks:
        chosen = [c for c in cells if (c.key.attack, c.key.norm) == (attack, norm)]
        path = folder / f"{attack}-{norm}.png"
        _over_size([c for c in chosen if c.key.samples == most[c.key.defence]], f"{attack}, {norm}", path)
        written.append(path)
    smoothed = [c for c in cells if most[c.key.defence] > 1]
    if len({c.key.samples for c in smoothed}) > 1:
        path = folder / "samples.png"
        _over_samples(smoothed, path)
        written.append(path)
    return written


def _over_size(cells: Sequence[Cell], title: str, path: Path) -> None:
    figure = require_matplotlib()(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="ε in 255ths", ylabel="answers changed", ylim=(-0.02, 1.02), title=title)
    for number, defence in enumerate(dict.fromkeys(c.key.defence for c in cells)):
        for adaptive, style in ((False, "--"), (True, "-")):
            chosen = [c for c in cells if (c.key.defence, c.key.adaptive) == (defence, adaptive) and c.changed]
            line = [(c.key.size, c.changed) for c in sorted(chosen, key=lambda c: c.key.size)]
            if line:
                label = f"{defence}, {'adaptive' if adaptive else 'fixed'}"
                _draw(axes, line, f"C{number}", style, label)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)


def _over_samples(cells: Sequence[Cell], path: Path) -> None:
    figure = require_matplotlib()(figsize=(11, 3.6), layout="constrained")
    largest = max(c.key.size for c in cells)
    accuracy, changed, latency = figure.subplots(1, 3)
    accuracy.set(ylabel="accuracy without attack")
    changed.set(ylabel=f"answers changed, largest ε ({largest:g}/255)")
    latency.set(ylabel="ms per image, smoothing pass")
    for number, defence in enumerate(dict.fromkeys(c.key.defence for c in cells)):
        own = [c for c in cells if c.key.defence == defence]
        clean = sorted((c for c in own if c.key.attack == NO_ATTACK), key=lambda c: c.key.samples)
        _draw(accuracy, [(c.key.samples, c.accuracy) for c in clean], f"C{number}", "-", defence)
        latency.plot([c.key.samples for c in clean], [1000 * c.seconds for c in clean], f"C{number}", label=defence)
        attacked = [c for c in own if c.key.size == largest and c.changed]
        for attack, norm, adaptive in dict.fromkeys((c.key.attack, c.key.norm, c.key.adaptive) for c in attacked):
            chosen = [c for c in attacked if (c.key.attack, c.key.norm, c.key.adaptive) == (attack, norm, adaptive)]
            line = [(c.key.samples, c.changed) for c in sorted(chosen, key=lambda c: c.key.samples)]
            label = f"{defence}, {attack} {norm}, {'adaptive' if adaptive else 'fixed'}"
            _draw(changed, line, f"C{number}", "-" if adaptive else "--", label)
    for axes in (accuracy, changed, latency):
        axes.set(xlabel="samples n")
        axes.set_xscale("log", base=2)
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=150)


def _draw(axes: Any, line: Sequence[tuple[float, Any]], colour: str, style: str, label: str) -> None:
    x = [place for place, _ in line]
    values = [estimate.value for _, estimate in line]
    below = [max(0.0, estimate.value - estimate.low) for _, estimate in line]
    above = [max(0.0, estimate.high - estimate.value) for _, estimate in line]
    axes.errorbar(x, values, yerr=(below, above), color=colour, linestyle=style, label=label, capsize=2)
