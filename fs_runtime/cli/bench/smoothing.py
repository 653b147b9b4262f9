"""``fs-serve bench smoothing``: rates of the smoothing pass as a table, as JSON, and as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli.bench.output import OutputOption, ShapeOption, measured_checkpoint, present
from fs_runtime.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption, PsmOption, number_list
from fs_runtime.options import COMPILE_MODES, QUANTIZATIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fs_runtime.benchmarks.network_modes import MeasuredMode, NetworkMode
    from fs_runtime.benchmarks.smoothing import SmoothingBenchmark

Name = TypeVar("Name", bound=str)


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
    compile_modes: Annotated[
        str,
        typer.Option(
            "--compile",
            help="Modes of torch.compile, separated by commas, and none for eager: none, default, "
            "max-autotune-no-cudagraphs, reduce-overhead (with CUDA graphs), max-autotune. With several, one table "
            "compares them.",
        ),
    ] = "none",
    quantization: Annotated[
        str,
        typer.Option(help="Formats of the products in the encoder's linear layers, separated by commas: none, fp8."),
    ] = "none",
    as_json: JsonOption = False,
    output: OutputOption = None,
) -> None:
    """Compare the smoothing pass with the bare networks at their best batch, a plain loop, and the device's peak."""
    from fs_runtime.benchmarks.network_modes import NetworkMode, benchmark_modes
    from fs_runtime.benchmarks.smoothing import benchmark_smoothing
    from fs_runtime.loading.engine import load_smoother

    sizes = number_list(batch_sizes, int, "--batch-sizes", "16,32")
    counts = number_list(image_samples or "", int, "--image-samples", "256,1000")
    if not all(number >= 1 for number in (*sizes, *counts)):
        raise typer.BadParameter("batch sizes and numbers of samples are at least 1")
    formats = _named(quantization, "--quantization", QUANTIZATIONS)
    modes = _named(compile_modes, "--compile", COMPILE_MODES)
    network_modes = [NetworkMode(compiled, form) for form in formats for compiled in modes]
    with measured_checkpoint(model, shape) as checkpoint, Console(stderr=True).status("measuring") as status:
        plain = load_smoother(checkpoint, psm=psm, device=device, dtype="float32")
        on = str(plain.encoder.device)
        on_gpu = on != "cpu"

        def measure(mode: NetworkMode) -> SmoothingBenchmark:
            return benchmark_smoothing(
                load_smoother(checkpoint, psm=psm, device=on, dtype=dtype, quantization=mode.quantization),
                plain,
                batch_sizes=sizes or ([32, 64, 128, 256] if on_gpu else [8, 16, 32, 64]),
                samples=samples,
                image_samples=[256, 1000] if on_gpu and image_samples is None else counts,
                side=side,
                rounds=rounds,
                compile_mode=mode.compiled,
                progress=lambda done: status.update(f"{mode}: {done}"),
            )

        if len(network_modes) == 1:
            found = measure(network_modes[0])
        else:
            measured = benchmark_modes(network_modes, measure, lambda result: typer.echo(_line(result), err=True))
    if len(network_modes) == 1:
        title = f"{shape or model}: {_setting(found)}"
        present(
            found,
            lambda: [_table(found, title)],
            as_json=as_json,
            output=output,
            draw=lambda axes: _draw(found, title, axes),
        )
        return
    present(
        measured,
        lambda: [_modes_table(measured, shape or model)],
        as_json=as_json,
        output=output,
        draw=lambda axes: _draw_modes(measured, shape or model, axes),
    )
    if any(result.error for result in measured):
        raise typer.Exit(1)


def _named(text: str, option: str, names: tuple[Name, ...]) -> list[Name | None]:
    """The names of a list like ``none,default``, without duplicates; None for ``none``.

    Raises:
        typer.BadParameter: A name is unknown.
    """
    known: dict[str, Name | None] = {"none": None, **{name: name for name in names}}
    given = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not given or not set(given) <= known.keys():
        raise typer.BadParameter(f"{option} takes {', '.join(known)}, separated by commas, not {text!r}")
    return [known[name] for name in given]


def _setting(found: SmoothingBenchmark) -> str:
    rows, columns = found.grid[:2]
    how = [found.dtype, found.quantization, found.compiled and f"compiled {found.compiled}"]
    return f"{found.parts} on {found.device}, {', '.join(filter(None, how))}, {rows} x {columns} tokens"


def _line(result: MeasuredMode) -> str:
    if result.found is None:
        return f"{result.way}: failed: {result.error}"
    rate = f"{result.found.smoothing:.4g} samples/s"
    return f"{result.way}: {rate}, {result.of_first_bare:.3f} of the first bare networks"


def _modes_table(measured: list[MeasuredMode], name: str) -> Table:
    """A table with a row for each mode; the row of a failed mode has the reason."""
    done = [result.found for result in measured if result.found is not None]
    counts = list(done[0].image_seconds) if done else []
    title = name
    if done:
        rows, columns = done[0].grid[:2]
        title = f"{name}: {done[0].parts} on {done[0].device}, {done[0].dtype}, {rows} x {columns} tokens"
    table = Table(
        "networks",
        "batch",
        "samples/s",
        "x plain loop",
        "of the first bare",
        "of own bare",
        f"of {done[0].dtype} peak" if done else "of peak",
        *(f"{count} samples" for count in counts),
        "warm-up",
        title=title,
    )
    for result in measured:
        found = result.found
        if found is None:
            table.add_row(result.way, f"failed: {result.error}")
            continue
        table.add_row(
            result.way,
            str(found.batch_size),
            f"{found.smoothing:.4g}",
            f"{found.over_plain_loop:.2f}",
            f"{result.of_first_bare:.3f}",
            f"{found.of_bare:.3f}",
            f"{found.flop_utilisation:.3f}",
            *(f"{found.image_seconds[count]:.3g} s" for count in counts),
            f"{found.warm_up_seconds:.0f} s",
        )
    return table


def _draw_modes(measured: list[MeasuredMode], name: str, axes: Axes) -> None:
    done = [(result.way, result.found) for result in measured if result.found is not None]
    names = [mode for mode, _ in done]
    axes.barh(names, [found.bare for _, found in done], color="0.8", label="bare networks")
    axes.barh(names, [found.smoothing for _, found in done], height=0.4, color="#009e73", label="smoothing pass")
    axes.set(xlabel="samples/s", title=name)
    axes.invert_yaxis()
    axes.legend(fontsize="small")


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
