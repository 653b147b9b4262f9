"""``fs-serve evaluate features``: what smoothing leaves of pictures, and how similar different ones are."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PsmOption,
    check_folder,
    checkpoint_of,
    positive_numbers,
)
from fs_runtime.options import LEAST_FIDELITY, MIN_SIGMA
from fs_runtime.system.progress_bar import ProgressBar

if TYPE_CHECKING:
    from fs_runtime.smoothing.feature_statistics import FeatureStatistics, NoiseLevel
    from fs_runtime.smoothing.smoother import Smoother


def evaluate_features(
    images: Annotated[
        str, typer.Option(help="Folder of pictures (with its subfolders), or 'reference' for drawn scenes and digits.")
    ] = "reference",
    count: Annotated[int, typer.Option(min=2, help="Pictures to use, at most.")] = 128,
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    sigma: Annotated[
        float | None, typer.Option(min=0.0, help="Noise level in pixels of [0, 1]; by default what suits the PSM.")
    ] = None,
    sigmas: Annotated[
        str, typer.Option(help="Noise levels of the curve, separated by commas: ρ, fidelity and floor at each.")
    ] = "0.02,0.05,0.1,0.15,0.25,0.35,0.5",
    samples: Annotated[int, typer.Option(min=2, help="Noise samples for each picture.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where the statistics are written: a file that ends in .safetensors, for `--feature-statistics`, or "
            "the folder of the PSM, or of the model where there is none, in which they are found."
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve here, with .png and .svg appended.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure what smoothing leaves of pictures, how similar different ones are, and the mean that `centred` takes off.

    The curve over noise levels is how to choose sigma: as large as the fidelity allows.
    """
    from fs_runtime.evaluation.features import FEATURE_MAPS, measure_feature_statistics, measure_noise_levels
    from fs_runtime.evaluation.plotting import PlottingError, require_matplotlib
    from fs_runtime.loading.engine import load_smoother
    from fs_runtime.smoothing.smoother import Smoother
    from fs_runtime.system.files import TrainingError
    from fs_runtime.training.data import find_pictures, reference_pictures

    if sigma is not None and not math.isfinite(sigma):
        raise typer.BadParameter(f"sigma must be finite, not {sigma}")
    noise_levels = positive_numbers("--sigmas", sigmas, float)
    if min(noise_levels) < MIN_SIGMA:
        raise typer.BadParameter(f"--sigmas must be at least {MIN_SIGMA:g}, not {min(noise_levels):g}")
    if plot is not None:
        check_folder("--plot", plot)
    path = None if output is None else _file(output)
    try:
        if plot is not None:
            require_matplotlib()
        found = reference_pictures(count) if images == "reference" else find_pictures(images)[0]
    except (TrainingError, PlottingError) as error:
        raise typer.BadParameter(str(error)) from None
    pictures = [found[index] for index in range(min(count, len(found)))]
    smoother = load_smoother(checkpoint_of(model), psm=psm, device=device, dtype=dtype, without_statistics=True)
    level = smoother.sigma_for(sigma)
    # Also without purifier and mapper, where there are some.
    bare = Smoother(smoother.encoder) if smoother.purifier or smoother.mapper else None
    total = (4 + len(noise_levels) * (2 if bare else 1)) * len(pictures)
    with ProgressBar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("smoothing", total=total)
        try:
            statistics = measure_feature_statistics(
                smoother, pictures, level, samples, lambda done: bar.update(task, completed=done)
            )
            curves: dict[str, list[NoiseLevel]] = {}
            for smooths in (smoother, bare):
                if smooths is not None:
                    smooths.statistics = statistics
                    before = bar.tasks[task].completed
                    curves[_name(smooths)] = measure_noise_levels(
                        smooths,
                        pictures,
                        noise_levels,
                        samples,
                        lambda done, before=before: bar.update(task, completed=before + done),  # type: ignore[misc]
                    )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    statistics = statistics.with_levels(curves[_name(smoother)])
    if path is not None:
        statistics.save(path)
    if plot is not None:
        from fs_runtime.evaluation.fidelity_plot import plot_noise_levels

        plot_noise_levels(curves, plot, LEAST_FIDELITY)
    if as_json:
        floors = [dataclasses.asdict(each) | dataclasses.asdict(statistics.floor(each)) for each in FEATURE_MAPS]
        levels = {name: [dataclasses.asdict(each) for each in curve] for name, curve in curves.items()}
        facts = {"card": dataclasses.asdict(statistics.card), "floors": floors, "levels": levels}
        typer.echo(json.dumps(facts | {"default_sigma": statistics.largest_sigma(LEAST_FIDELITY)}, indent=2))
        return
    for table in _tables(statistics, curves):
        Console().print(table)
    best = statistics.largest_sigma(LEAST_FIDELITY)
    typer.echo(
        f"largest sigma here that leaves tokens a fidelity of {LEAST_FIDELITY:g}: "
        + (f"{best:g}, the default with these statistics" if best else "none; ask for smaller ones with --sigmas")
    )


def _file(output: Path) -> Path:
    """The file that ``--output`` names."""
    from fs_runtime.smoothing.feature_statistics import FILE_NAME

    if output.is_dir():
        return output / FILE_NAME
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise typer.BadParameter(f"{output} is not a folder, nor a file .safetensors in one", param_hint="--output")
    return output


def _name(smoother: Smoother) -> str:
    """What smooths beside the encoder, in words."""
    parts = [name for name in ("purifier", "mapper") if getattr(smoother, name) is not None]
    return f"with {' and '.join(parts)}" if parts else "without purifier"


def _tables(statistics: FeatureStatistics, curves: Mapping[str, Sequence[NoiseLevel]]) -> Iterator[Table]:
    from fs_runtime.evaluation.features import FEATURE_MAPS

    title = f"similarity of different images, σ = {statistics.card.sigma:g}"
    table = Table("features", "mean", "95% of pairs below", title=title)
    for each in FEATURE_MAPS:
        floor = statistics.floor(each)
        table.add_row(f"{each.stage}{', centred' if each.centred else ''}", f"{floor.mean:.4f}", f"{floor.high:.4f}")
    yield table
    columns = ("σ", "ρ", "fidelity", "of tokens", "of 5% below", "different images", "95% of pairs below")
    for name, levels in curves.items():
        table = Table(*columns, title=f"what smoothing leaves, {name}")
        for level in levels:
            floor = level.floors["encoder"][0]
            values = (level.norm, level.fidelity, level.token_fidelity, level.low_fidelity, floor.mean, floor.high)
            table.add_row(f"{level.sigma:g}", *(f"{value:.4f}" for value in values))
        yield table
