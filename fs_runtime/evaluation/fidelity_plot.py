"""ρ, fidelity and floor over the noise level, as a plot: the curves by which an operator chooses σ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fs_runtime.evaluation.plotting import plot_to
from fs_runtime.smoothing.feature_statistics import NoiseLevel

_STYLES = ("-", "--")


def plot_noise_levels(curves: Mapping[str, Sequence[NoiseLevel]], path: Path, least: float) -> None:
    """Draws the curves and the fidelity that a default σ must reach; ``.png`` and ``.svg`` are appended to ``path``.

    Args:
        curves: By the name of what purifies; at most two.
        path: Of the plot.
        least: The fidelity of tokens that is drawn as a line.

    Raises:
        PlottingError: matplotlib is not installed.
    """
    with plot_to(path) as axes:
        for (name, levels), style in zip(curves.items(), _STYLES, strict=False):
            sigmas = [level.sigma for level in levels]
            floors = [level.floors["encoder"][0].high for level in levels]
            tokens = [level.token_fidelity for level in levels]
            axes.plot(sigmas, tokens, style, marker="o", color="#0072b2", label=f"fidelity of tokens, {name}")
            axes.plot(sigmas, [level.norm for level in levels], style, color="#009e73", label=f"ρ, {name}")
            axes.plot(sigmas, floors, style, color="#d55e00", label=f"different pictures (95%), {name}")
        axes.axhline(least, color="0.6", linewidth=1, linestyle=":")
        axes.set(xlabel="σ, in pixels of [0, 1]", ylabel="cosine similarity", ylim=(0, 1.01))
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
