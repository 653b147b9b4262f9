"""Plots of the table of photographs; the extra ``plots`` installs matplotlib."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fs_runtime.evaluation.intervals import Estimate
from fs_runtime.evaluation.photographs.cells import MEASURES, PhotographCell
from fs_runtime.evaluation.photographs.summary import CellEstimates, estimates_of
from fs_runtime.evaluation.plotting import plot_to
from fs_runtime.options import NORMS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TOP1 = ("top1_smoothed", "top1_copy")
_FIDELITY = ("token_fidelity", "class_token_fidelity", "norm")
_ATTACKED = ("top1_smoothed", "clean_token_fidelity")
_STYLES = ("-", "--", ":")
_TITLES = {measure.name: measure.title for measure in MEASURES}


def write_plots(folder: Path, cells: Sequence[PhotographCell]) -> list[Path]:
    """Draws top-1 and fidelity of each encoder over σ, and what adaptive attacks leave over ε, as PNG and SVG.

    Args:
        folder: For the files.
        cells: Finished ones.

    Returns:
        The PNG files written.

    Raises:
        PlottingError: matplotlib is not installed.
    """
    written = []
    for encoder in dict.fromkeys(cell.key.encoder for cell in cells):
        estimates = [estimates_of(cell) for cell in cells if cell.key.encoder == encoder]
        start = re.sub(r"[^\w-]+", "_", encoder)
        smoothed = [one for one in estimates if one.key.attack == "none" and one.key.sigma > 0]
        bare = next((one for one in estimates if one.key.attack == "none" and one.key.sigma == 0), None)
        for name, wanted in (("top1", _TOP1), ("fidelity", _FIDELITY)):
            if any(measure in one.values for one in smoothed for measure in wanted):
                written.append(folder / f"{start}-{name}.png")
                with plot_to(folder / f"{start}-{name}") as axes:
                    _draw_rows(axes, smoothed, wanted, "sigma")
                    if name == "top1" and bare is not None:
                        value = bare.values["top1_smoothed"].value
                        axes.axhline(value, color="0.4", linewidth=1, label="top-1 without smoothing")
                    axes.set(xlabel="σ, in pixels of [0, 1]")
                    _finish(axes)
        for norm in NORMS:
            adaptive = [one for one in estimates if (one.key.attack, one.key.norm) == ("adaptive", norm)]
            if adaptive:
                written.append(folder / f"{start}-adaptive-{norm}.png")
                with plot_to(folder / f"{start}-adaptive-{norm}") as axes:
                    _draw_rows(axes, adaptive, _ATTACKED, "radius")
                    axes.set(xlabel=f"ε of the adaptive attack, {norm}, in pixels of [0, 1]")
                    _finish(axes)
    return written


def _draw_rows(
    axes: Axes, rows: Sequence[CellEstimates], measures: Sequence[str], over: Literal["sigma", "radius"]
) -> None:
    """A line for each purifier, under attack also for each noise level, and each measure."""
    lines: dict[str, list[CellEstimates]] = {}
    for one in rows:
        label = one.key.purifier if over == "sigma" else f"{one.key.purifier}, σ = {one.key.sigma:g}"
        lines.setdefault(label, []).append(one)
    for number, (label, found) in enumerate(lines.items()):
        line = sorted(found, key=lambda one: (one.key.sigma, one.key.radius))
        for measure, style in zip(measures, _STYLES, strict=False):
            points = [(getattr(one.key, over), one.values[measure]) for one in line if measure in one.values]
            if points:
                _draw(axes, points, f"C{number % 10}", style, f"{_TITLES[measure]}, {label}")


def _draw(axes: Axes, points: Iterable[tuple[float, Estimate]], colour: str, style: str, label: str) -> None:
    places, estimates = zip(*points, strict=True)
    values = [one.value for one in estimates]
    below = [max(0.0, one.value - one.low) for one in estimates]
    above = [max(0.0, one.high - one.value) for one in estimates]
    axes.errorbar(
        places,
        values,
        yerr=(below, above),
        color=colour,
        linestyle=style,
        marker="o",
        markersize=3,
        capsize=2,
        label=label,
    )


def _finish(axes: Axes) -> None:
    axes.set(ylim=(0, 1.01))
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
