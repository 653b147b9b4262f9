"""``fs-serve bench smoothing``: rates of the pass as a table, as JSON, and as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.bench_output import OutputOption, ShapeOption, measured_checkpoint, numbers_of, present
from fs_runtime.cli import DeviceOption, DtypeOption, JsonOption, ModelOption, PsmOption

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fs_runtime.bench import SmoothingBenchmark


def bench_smoothing(
    model: ModelOption = "reference",
    shape: ShapeOption = None,
    psm: PsmOption = "none",
    samples: Annotated[int, typer.Option(min=1, help="Samples in each measurement.")] = 512,
    batch_sizes: Annotated[
        str, typer.Option(help="Batch sizes to try, separated by commas; by default what suits the device.")
    ] = "",
    image_samples: Annotated[
        str | None,
        typer.Option(help="Samples of one image to time by itself, separated by commas; by default 256,1000 on a GPU."),
    ] = None,
    side: Annotated[
        int, typer.Option(min=28, help="Sides of the picture in pixels: they decide the grid of encoders without one.")
    ] = 448,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each; the median is reported.")] = 9,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """The smoothing pass beside the bare networks at their best batch, a plain loop, and the device's peak."""
    from fs_runtime.bench import benchmark_smoothing
    from fs_runtime.loading import load_smoother

    sizes = numbers_of(batch_sizes, int, "--batch-sizes", "16,32")
    counts = numbers_of(image_samples or "", int, "--image-samples", "256,1000")
    if not all(number >= 1 for number in (*sizes, *counts)):
        raise typer.BadParameter("batch sizes and numbers of samples are at least 1")
    with measured_checkpoint(model, shape) as checkpoint:
        smoother = load_smoother(checkpoint, psm=psm, device=device, dtype=dtype)
        on = str(smoother.encoder.device)
        plain = load_smoother(checkpoint, psm=psm, device=on, dtype="float32")
    on_gpu = on != "cpu"
    with Console(stderr=True).status("measuring") as status:
        found = benchmark_smoothing(
            smoother,
            plain,
            batch_sizes=sizes or ([32, 64, 128, 256] if on_gpu else [8, 16, 32, 64]),
            samples=samples,
            image_samples=[256, 1000] if on_gpu and image_samples is None else counts,
            side=side,
            rounds=rounds,
            progress=status.update,
        )
    rows, columns = found.grid
    title = f"{shape or model}: {found.parts} on {found.device}, {found.dtype}, {rows} x {columns} tokens"
    present(
        found,
        lambda: [_table(found, title)],
        as_json=as_json,
        output=output,
        draw=lambda axes: _draw(found, title, axes),
    )


def _table(found: SmoothingBenchmark, title: str) -> Table:
    table = Table("", "samples/s", "ratio", title=title)
    for size, rate in found.bare_rates.items():
        table.add_row(f"bare, batch {size}", f"{rate:.4g}", "")
    table.add_row(f"bare, best batch {found.batch_size}", f"{found.bare:.4g}", "1 (ceiling)")
    table.add_row("smoothing pass", f"{found.smoothing:.4g}", f"{found.of_bare:.3f} of bare")
    table.add_row("plain loop, float32", f"{found.plain_loop:.4g}", f"pass is {found.over_plain_loop:.2f} x this")
    used = found.sample_flops * found.smoothing
    table.add_row(
        "FLOP/s of the pass",
        f"{used:.3g}",
        f"{found.flop_utilisation:.3f} of the matrix product's {found.peak_flops:.3g}",
    )
    for count, seconds in found.image_seconds.items():
        table.add_row(f"one image, {count} samples", f"{count / seconds:.4g}", f"{seconds:.3g} s")
    return table


def _draw(found: SmoothingBenchmark, title: str, axes: Axes) -> None:
    sizes = sorted(found.bare_rates)
    axes.plot(sizes, [found.bare_rates[size] for size in sizes], "o-", color="#0072b2", label="bare networks")
    axes.plot([found.batch_size], [found.smoothing], "D", color="#009e73", label="smoothing pass")
    axes.axhline(found.plain_loop, color="#d55e00", linestyle="--", label="plain loop")
    ceiling = found.peak_flops / found.sample_flops
    axes.axhline(ceiling, color="0.5", linestyle=":", label="the device's fastest matrix product")
    axes.set(xlabel="batch size", ylabel="samples/s", xscale="log", yscale="log")
    axes.set_title(title, fontsize="small")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.legend(fontsize="small")
