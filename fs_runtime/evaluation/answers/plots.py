"""Curves of certified accuracy over the radius; the extra ``plots`` installs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fs_runtime.certificate import most_vote_radius
from fs_runtime.certificate.vote_bound import PILOT
from fs_runtime.evaluation.answers.plan import COSINE
from fs_runtime.evaluation.answers.report import right_cosine_radii, right_radii
from fs_runtime.evaluation.answers.summary import Outcomes
from fs_runtime.evaluation.plotting import plot_to

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_plots(folder: Path, outcomes: Outcomes) -> list[Path]:
    """Draws the curves of each reading, one for each σ at the largest n, and for each σ one for each n; PNG and SVG.

    Args:
        folder: For the files.
        outcomes: Of the votes.

    Returns:
        The PNG files written.

    Raises:
        PlottingError: matplotlib is not installed.
    """
    written = []
    summaries = outcomes.summaries()
    most = max((one.samples for one in summaries), default=0)
    for reading in dict.fromkeys(one.reading for one in summaries):
        own = [one for one in summaries if one.reading == reading]
        sets = {reading: [(one.sigma, one.samples) for one in own if one.samples == most]}
        if len(outcomes.plan.samples) > 1:
            for sigma in dict.fromkeys(one.sigma for one in own):
                sets[f"{reading}-sigma-{sigma:g}"] = [(one.sigma, one.samples) for one in own if one.sigma == sigma]
        for name, chosen in sets.items():
            with plot_to(folder / name) as axes:
                for number, (sigma, samples) in enumerate(chosen):
                    _draw(axes, outcomes, reading, sigma, samples, f"C{number}")
                axes.set(xlabel="ℓ2 radius r, in pixels of [0, 1]", ylabel="share of questions", ylim=(0, 1.02))
                axes.set_xlim(left=0)
                axes.grid(alpha=0.3)
                axes.legend(fontsize="x-small")
            written.append(folder / f"{name}.png")
    return written


def _draw(axes: Axes, outcomes: Outcomes, reading: str, sigma: float, samples: int, colour: str) -> None:
    found = outcomes.of(reading, sigma, samples)
    limit = most_vote_radius(samples - PILOT, outcomes.plan.confidence, sigma)
    label = f"σ = {sigma:g}, n = {samples}"
    axes.plot(*steps(right_radii(found), len(found)), color=colour, label=f"{label}: right and certified")
    cosine = steps(right_cosine_radii(found), len(found))
    axes.plot(*cosine, color=colour, linestyle="--", linewidth=1, label=f"{label}: features keep cosine {COSINE:g}")
    axes.axvline(limit, color=colour, linestyle=":", linewidth=1, label=f"{label}: limit of any vote")


def steps(radii: Sequence[float], items: int) -> tuple[list[float], list[float]]:
    """Corners of the curve r ↦ share of items whose radius is at least r.

    Args:
        radii: Of items that count, largest first.
        items: All of them.
    """
    x, y = [0.0], [len(radii) / items]
    for left, radius in zip(range(len(radii), 0, -1), reversed(radii), strict=True):
        x += [radius, radius]
        y += [left / items, (left - 1) / items]
    return x, y
