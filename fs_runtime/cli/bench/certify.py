"""``fs-serve bench certify``: cost of certifying a wanted similarity, as a table, as JSON, and as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli.bench.output import OutputOption, ShapeOption, measured_checkpoint, present
from fs_runtime.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption, PsmOption, number_list
from fs_runtime.options import radius_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fs_runtime.benchmarks.certify import CertifyRow


def bench_certify(
    model: ModelOption = "reference",
    shape: ShapeOption = None,
    psm: PsmOption = "auto",
    similarities: Annotated[
        str, typer.Option(help="Wanted similarities, separated by commas.")
    ] = "0.5,0.8,0.9,0.95,0.99",
    samples: Annotated[str, typer.Option(help="Fixed numbers of samples, separated by commas.")] = "256,1024",
    radius: Annotated[
        float | None, typer.Option(min=0.0, help="l2 radius; by default half of the model's sigma.")
    ] = None,
    confidence: Annotated[float, typer.Option(help="Probability that a certificate holds.")] = 0.999,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Samples and time to certify a similarity on the example pictures: adaptive against fixed numbers of samples."""
    from fs_runtime.benchmarks.certify import benchmark_certify
    from fs_runtime.loading.engine import EngineOptions, load_engine
    from fs_runtime.preprocessing.pictures import read_picture
    from fs_runtime.reference import example_images

    wanted = number_list(similarities, float, "--similarities", "0.5,0.9")
    counts = number_list(samples, int, "--samples", "256,1024")
    if not counts or not all(0 < value <= 1 for value in wanted) or not all(count >= 1 for count in counts):
        raise typer.BadParameter("similarities lie in (0, 1], and numbers of samples are at least 1")
    with Console(stderr=True).status("loading") as status:
        with measured_checkpoint(model, shape) as checkpoint:
            engine = load_engine(checkpoint, EngineOptions(psm=psm, device=device, dtype=dtype))
        try:
            engine.warm_up()
            at = radius_for(engine.smoother.sigma, radius)
            images = {name: read_picture(path) for name, path in example_images().items()}
            found = benchmark_certify(
                engine,
                images,
                similarities=wanted,
                counts=counts,
                radius=at,
                confidence=confidence,
                progress=status.update,
            )
        finally:
            engine.close()
    sigma = engine.smoother.sigma
    title = f"{shape or model}: σ = {sigma:g}, r = {at:g}, confidence {confidence:g}, {len(images)} pictures"
    present(
        found,
        lambda: [_table(found, title)],
        as_json=as_json,
        output=output,
        draw=lambda axes: _draw(found, title, axes),
    )


def _table(rows: list[CertifyRow], title: str) -> Table:
    table = Table("similarity", "way", "samples at most", "certified", "samples", "seconds", title=title)
    for row in rows:
        table.add_row(
            f"{row.similarity:g}",
            row.way,
            str(row.max_samples),
            f"{row.certified:.0%}",
            f"{row.samples:.0f}",
            f"{row.seconds:.3g}",
        )
    return table


def _draw(rows: list[CertifyRow], title: str, axes: Axes) -> None:
    ways = list(dict.fromkeys((row.way, row.max_samples) for row in rows))
    for (way, count), colour in zip(ways, ("#0072b2", "#009e73", "#e69f00", "#d55e00", "0.5"), strict=False):
        shown = [row for row in rows if (row.way, row.max_samples) == (way, count)]
        label = f"{way}, at most {count}" if way == "adaptive" else f"{way}, {count}"
        axes.plot([row.similarity for row in shown], [row.seconds for row in shown], "o-", color=colour, label=label)
        failed = [row for row in shown if row.certified < 1]
        axes.plot([row.similarity for row in failed], [row.seconds for row in failed], "x", color="black")
    axes.plot([], [], "x", color="black", label="not certified for every picture")
    axes.set(xlabel="wanted similarity", ylabel="seconds for one picture", yscale="log")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")
