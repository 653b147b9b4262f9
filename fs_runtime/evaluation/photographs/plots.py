"""Plots of the table of photographs; the extra ``plots`` installs matplotlib."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fs_runtime.evaluation.photographs.cells import MEASURES, Measure, PhotographCell
from fs_runtime.evaluation.photographs.summary import CellEstimates, estimates_of
from fs_runtime.evaluation.plotting import plot_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAWN = {
    "top1": ("top1_smoothed", "top1_copy"),
    "fidelity": ("token_fidelity", "class_token_fidelity", "norm"),
    "attacks": ("top1_smoothed", "clean_token_fidelity"),
}
_STYLES = ("-", "--", ":")


def write_plots(folder: Path, cells: Sequence[PhotographCell]) -> list[Path]:
    """Draws top-1 and fidelity of each encoder over σ, and what adaptive attacks leave, as PNG and SVG.

    Args:
        folder: For the files.
        cells: Finished ones.

    Returns:
        The PNG files written.

    Raises:
        PlottingError: matplotlib is not installed.
    """
    written = []
    titles = {measure.name: measure for measure in MEASURES}
    for encoder in dict.fromkeys(cell.key.encoder for cell in cells):
        estimates = [estimates_of(cell) for cell in cells if cell.key.encoder == encoder]
        for name, wanted in _DRAWN.items():
            kind = "adaptive" if name == "attacks" else "none"
            rows = [one for one in estimates if one.key.attack == kind and one.key.sigma > 0]
            measures = [titles[each] for each in wanted if any(each in one.values for one in rows)]
            if measures:
                path = folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', encoder)}-{name}"
                _over_radius(rows, measures, path) if name == "attacks" else _over_sigma(rows, measures, path)
                written.append(path.with_name(f"{path.name}.png"))
    return written


def _over_sigma(rows: Sequence[CellEstimates], measures: Sequence[Measure], path: Path) -> None:
    with plot_to(path) as axes:
        for number, purifier in enumerate(dict.fromkeys(one.key.purifier for one in rows)):
            for measure, style in zip(measures, _STYLES, strict=False):
                line = [one for one in rows if one.key.purifier == purifier]
                _draw(axes, sorted(line, key=lambda one: one.key.sigma), "sigma", measure, number, style, purifier)
        axes.set(xlabel="σ, in pixels of [0, 1]", ylim=(0, 1.01))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _over_radius(rows: Sequence[CellEstimates], measures: Sequence[Measure], path: Path) -> None:
    with plot_to(path) as axes:
        for number, (purifier, sigma, norm) in enumerate(
            dict.fromkeys((one.key.purifier, one.key.sigma, one.key.norm) for one in rows)
        ):
            for measure, style in zip(measures, _STYLES, strict=False):
                line = [o for o in rows if (o.key.purifier, o.key.sigma, o.key.norm) == (purifier, sigma, norm)]
                label = f"{purifier}, σ = {sigma:g}, {norm}"
                _draw(axes, sorted(line, key=lambda one: one.key.radius), "radius", measure, number, style, label)
        axes.set(xlabel="radius of the adaptive attack, in pixels of [0, 1]", ylim=(0, 1.01))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")


def _draw(
    axes: Axes, line: Sequence[CellEstimates], over: str, measure: Measure, number: int, style: str, label: str
) -> None:
    shown = [(getattr(one.key, over), one.values[measure.name]) for one in line if measure.name in one.values]
    if not shown:
        return
    values = [estimate.value for _, estimate in shown]
    below = [max(0.0, estimate.value - estimate.low) for _, estimate in shown]
    above = [max(0.0, estimate.high - estimate.value) for _, estimate in shown]
    axes.errorbar(
        [place for place, _ in shown],
        values,
        yerr=(below, above),
        color=f"C{number % 10}",
        linestyle=style,
        marker="o",
        markersize=3,
        capsize=2,
        label=f"{measure.title}, {label}",
    )
