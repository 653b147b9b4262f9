"""``fs-serve evaluate features``: measures the similarity of different images, and the mean feature."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption, PsmOption, checkpoint_of
from fs_runtime.system.progress_bar import ProgressBar


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
    samples: Annotated[int, typer.Option(min=2, help="Noise samples for each picture.")] = 16,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the PSM, or of the model where there is none: the statistics are written there."),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure how similar the features of different images are, and their mean, which `centred` takes off."""
    from fs_runtime.evaluation.features import measure_feature_statistics
    from fs_runtime.loading.engine import load_smoother
    from fs_runtime.smoothing.feature_map import FeatureMap
    from fs_runtime.smoothing.feature_statistics import FILE_NAME, STAGES
    from fs_runtime.system.files import TrainingError
    from fs_runtime.training.data import find_pictures, reference_pictures

    if sigma is not None and not math.isfinite(sigma):
        raise typer.BadParameter(f"sigma must be finite, not {sigma}")
    if output is not None and not output.is_dir():
        raise typer.BadParameter(f"{output} is not a folder", param_hint="--output")
    try:
        found = reference_pictures(count) if images == "reference" else find_pictures(images)[0]
    except TrainingError as error:
        raise typer.BadParameter(str(error)) from None
    pictures = [found[index] for index in range(min(count, len(found)))]
    smoother = load_smoother(checkpoint_of(model), psm=psm, device=device, dtype=dtype)
    level = smoother.sigma_for(sigma)
    with ProgressBar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("smoothing", total=4 * len(pictures))
        try:
            statistics = measure_feature_statistics(
                smoother, pictures, level, samples, lambda done: bar.update(task, completed=done)
            )
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    if output is not None:
        statistics.save(output / FILE_NAME)
    maps = [FeatureMap(stage, centred) for stage in STAGES for centred in (False, True)]
    if as_json:
        floors = [dataclasses.asdict(each) | dataclasses.asdict(statistics.floor(each)) for each in maps]
        typer.echo(json.dumps({"card": dataclasses.asdict(statistics.card), "floors": floors}, indent=2))
        return
    table = Table("features", "mean", "95% of pairs below", title=f"similarity of different images, σ = {level:g}")
    for each in maps:
        floor = statistics.floor(each)
        table.add_row(f"{each.stage}{', centred' if each.centred else ''}", f"{floor.mean:.4f}", f"{floor.high:.4f}")
    Console().print(table)
