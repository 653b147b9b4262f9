"""``fs-serve bench smoothing``: rates of the pass as a table, as JSON, and as a plot."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli import DeviceOption, DtypeOption, JsonOption, ModelOption, PsmOption, checkpoint_of

if TYPE_CHECKING:
    from fs_runtime.bench import SmoothingBenchmark


def bench_smoothing(
    model: ModelOption = "reference",
    shape: Annotated[
        str | None, typer.Option(help="Instead of a model: random weights in the shape of a well-known encoder.")
    ] = None,
    psm: PsmOption = "none",
    samples: Annotated[int, typer.Option(min=8, help="Samples in each measurement.")] = 512,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to try, separated by commas.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each; the median is reported.")] = 9,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
    output: Annotated[
        Path | None, typer.Option(help="Also write the figures and a plot there, with .json, .png and .svg appended.")
    ] = None,
) -> None:
    """The smoothing pass beside the bare networks at their best batch, a plain loop, and the device's peak."""
    from fs_runtime.bench import benchmark_smoothing
    from fs_runtime.loading import load_smoother
    from fs_runtime.plots import require_matplotlib
    from fs_runtime.random_models import write_random_llava

    console = Console(stderr=True)
    if output is not None:
        require_matplotlib()
    with tempfile.TemporaryDirectory() as folder:
        try:
            checkpoint = str(write_random_llava(shape, Path(folder))) if shape else checkpoint_of(model)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        smoother = load_smoother(checkpoint, psm=psm, device=device, dtype=dtype)
        on = str(smoother.encoder.device)
        plain = load_smoother(checkpoint, psm=psm, device=on, dtype="float32")
    default = "8,16,32,64" if on == "cpu" else "32,64,128,256"
    try:
        sizes = [int(size) for size in (batch_sizes or default).split(",")]
    except ValueError:
        raise typer.BadParameter("batch sizes are whole numbers separated by commas, for example 16,32") from None
    with console.status("measuring") as status:
        found = benchmark_smoothing(
            smoother, plain, batch_sizes=sizes, samples=samples, rounds=rounds, progress=status.update
        )
    title = f"{shape or model}: {found.parts} on {found.device}, {found.dtype}"
    figures = json.dumps(dataclasses.asdict(found), indent=2)
    if output is not None:
        output.with_name(output.name + ".json").write_text(figures + "\n", encoding="utf-8")
        _plot(found, title, output)
    if as_json:
        typer.echo(figures)
    else:
        Console().print(_table(found, title))


def _table(found: SmoothingBenchmark, title: str) -> Table:
    table = Table("", "samples/s", "ratio", title=title)
    for size, rate in found.bare_rates.items():
        table.add_row(f"bare, batch {size}", f"{rate:.4g}", "")
    table.add_row(f"bare, best batch {found.batch_size}", f"{found.bare:.4g}", "1 (ceiling)")
    table.add_row("smoothing pass", f"{found.smoothing:.4g}", f"{found.of_bare:.3f} of bare")
    table.add_row("plain loop", f"{found.plain_loop:.4g}", f"pass is {found.over_plain_loop:.2f} x this")
    used = found.sample_flops * found.smoothing
    table.add_row(
        "FLOP/s of the pass",
        f"{used:.3g}",
        f"{found.flop_utilisation:.3f} of the matrix product's {found.peak_flops:.3g}",
    )
    return table


def _plot(found: SmoothingBenchmark, title: str, path: Path) -> None:
    from fs_runtime.plots import require_matplotlib

    figure = require_matplotlib()(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = sorted(found.bare_rates)
    axes.plot(sizes, [found.bare_rates[size] for size in sizes], "o-", color="#0072b2", label="bare networks")
    axes.plot([found.batch_size], [found.smoothing], "D", color="#009e73", label="smoothing pass")
    axes.axhline(found.plain_loop, color="#d55e00", linestyle="--", label="plain loop")
    ceiling = found.peak_flops / found.sample_flops
    axes.axhline(ceiling, color="0.5", linestyle=":", label="the device's fastest matrix product")
    axes.set(xlabel="batch size", ylabel="samples/s", xscale="log", yscale="log", title=title)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.legend(fontsize="small")
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_name(path.name + suffix), dpi=150)
