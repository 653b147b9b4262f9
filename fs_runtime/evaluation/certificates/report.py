"""The comparison of certificates as tables, as Markdown, and as a plot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from fs_runtime.evaluation.certificates.compare import COMPARED_BOUNDS, OURS, PAPER, RATIOS, Comparison

_STYLES = {
    PAPER: ("#d55e00", "--"),
    "FCSB": ("#d55e00", "-"),
    "tight": ("#009e73", "-"),
    OURS: ("#0072b2", "-"),
    "best, served means": ("#0072b2", ":"),
    "Center Smoothing": ("#cc79a7", "-"),
    "Center Smoothing, exact ball": ("#cc79a7", "--"),
    "Lipschitz": ("#e69f00", "-"),
    "CDF": ("#56b4e9", "-"),
}


def certificate_tables(comparison: Comparison) -> Iterator[Table]:
    """A table for each model and radius, and one of the n from which on ours exceeds the paper's estimate."""
    found = _similarities(comparison)
    models, counts = _models(comparison), _counts(comparison)
    for psm in models:
        for ratio in RATIOS:
            title = f"certified similarity at r = {ratio:g} σ, {_model_name(psm)}, mean of {comparison.images} images"
            table = Table("", *(f"n = {count}" for count in counts), title=title)
            for bound in COMPARED_BOUNDS:
                table.add_row(bound, *(_number(found[psm, ratio, bound, count]) for count in counts))
            yield table
    table = Table(
        "", *(f"r = {ratio:g} σ" for ratio in RATIOS), title=f"smallest n from which on ours is above {PAPER}"
    )
    crossings = {(crossing.psm, crossing.ratio): crossing.samples for crossing in comparison.crossings}
    for psm in models:
        table.add_row(_model_name(psm), *(str(crossings[psm, ratio] or "none") for ratio in RATIOS))
    yield table


def certificates_markdown(comparison: Comparison) -> str:
    """One table for each model, all radii in each cell, and one of the crossings."""
    found = _similarities(comparison)
    counts = _counts(comparison)
    crossings = {(crossing.psm, crossing.ratio): crossing.samples for crossing in comparison.crossings}
    radii = " / ".join(f"{ratio:g} σ" for ratio in RATIOS)
    lines = [
        f"Mean over {comparison.images} images, σ = {comparison.sigma:g}, confidence {comparison.confidence:g}; "
        f"in each cell r = {radii}.",
        "",
    ]
    for psm in _models(comparison):
        lines.append(f"| {_model_name(psm)} | " + " | ".join(f"n = {count}" for count in counts) + " |")
        lines.append("|---|" + "---:|" * len(counts))
        for bound in COMPARED_BOUNDS:
            cells = (" / ".join(_number(found[psm, ratio, bound, count]) for ratio in RATIOS) for count in counts)
            lines.append(f"| {bound} | " + " | ".join(cells) + " |")
        lines.append("")
    lines.append(f"| smallest n from which on ours is above {PAPER} | " + radii.replace(" /", " |") + " |")
    lines.append("|---|" + "---:|" * len(RATIOS))
    for psm in _models(comparison):
        cells = (str(crossings[psm, ratio] or "none") for ratio in RATIOS)
        lines.append(f"| {_model_name(psm)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot_certificates(comparison: Comparison, path: Path) -> list[Path]:
    """Similarity against the number of samples; a row of panels for each model, a column for each radius.

    Args:
        comparison: What to draw.
        path: Output; its suffix is replaced by ``.png`` and ``.svg``.

    Returns:
        The files written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = _similarities(comparison)
    models, counts = _models(comparison), _counts(comparison)
    figure = Figure(figsize=(14, 1.2 + 3.2 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(models), len(RATIOS), squeeze=False, sharex=True, sharey=True)
    for row, psm in enumerate(models):
        for axes, ratio in zip(panels[row], RATIOS, strict=True):
            for bound, (colour, line) in _STYLES.items():
                values = [found[psm, ratio, bound, count] for count in counts]
                axes.plot(counts, values, color=colour, linestyle=line, label=bound)
            axes.set_xscale("log", base=2)
            axes.set(ylim=(0, 1.02), title=f"r = {ratio:g} σ, {_model_name(psm)}")
        panels[row][0].set_ylabel("cosine similarity")
    for axes in panels[-1]:
        axes.set_xlabel("samples")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small")
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        figure.savefig(file, dpi=150)
    return written


def _similarities(comparison: Comparison) -> dict[tuple[bool, float, str, int], float]:
    return {(row.psm, row.ratio, row.bound, row.samples): row.similarity for row in comparison.rows}


def _models(comparison: Comparison) -> list[bool]:
    return list(dict.fromkeys(row.psm for row in comparison.rows))


def _counts(comparison: Comparison) -> list[int]:
    return sorted({row.samples for row in comparison.rows})


def _model_name(psm: bool) -> str:
    return "with PSM" if psm else "without PSM"


def _number(similarity: float) -> str:
    return f"{similarity:.3f}" if similarity > 0 else "–"
