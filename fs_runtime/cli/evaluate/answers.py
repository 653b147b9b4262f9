"""``fs-serve evaluate answers``: certified accuracy of answers by vote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs_runtime.cli.options import (
    LARGEST_SEED,
    DeviceOption,
    ModelOption,
    PsmOption,
    check_plots,
    checkpoint_of,
    positive_numbers,
    probability,
)
from fs_runtime.options import MIN_SIGMA

if TYPE_CHECKING:
    from fs_runtime.evaluation.answers.items import VotedItem

_LEAST_COPIES = 16  # twice the pilot


def evaluate_answers(
    results: Annotated[Path, typer.Argument(help="Folder for tables and plots; a finished question is kept.")],
    items: Annotated[
        Path | None,
        typer.Option(
            help="Your questions, JSON lines with image (a path from the file's folder), question, answer and, if "
            "wanted, choices. By default held-out ones of the reference model."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions, at most; by default 600, or all of yours.")
    ] = None,
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    sigmas: Annotated[str, typer.Option(help="Noise levels in pixels of [0, 1].")] = "0.1,0.25,0.5",
    samples: Annotated[
        str, typer.Option(help="Every n, the pilot of 8 copies included; the smaller are the first of the largest.")
    ] = "32,128,512",
    confidence: Annotated[float, typer.Option(help="Probability that a certificate holds.")] = 0.999,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Most tokens of an answer; one that is cut off has no vote.")
    ] = 64,
    attack: Annotated[int, typer.Option(min=0, help="Certified questions to attack; a LLaVA model only.")] = 0,
    attack_sigma: Annotated[
        float | None, typer.Option(help="Their noise level; by default 0.25 if it is measured, else the first.")
    ] = None,
    attack_sizes: Annotated[
        str, typer.Option(help="Of the l2 balls, as multiples of the certified radius, until one turns the vote.")
    ] = "1,1.5,2,3,4",
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps of each start of an attack.")] = 20,
    restarts: Annotated[int, typer.Option(min=1, help="Random starts for each of the attack's two losses.")] = 2,
    draws: Annotated[int, typer.Option(min=1, help="Fresh noisy copies behind each gradient.")] = 8,
    judging: Annotated[
        int, typer.Option(min=16, help="Fresh copies, at most, that say whether a vote is turned.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of questions, noise and attacks.")] = 0,
    plots: Annotated[bool, typer.Option(help="Draw plots; needs the extra 'plots'.")] = True,
    device: DeviceOption = "auto",
) -> None:
    """Measure how many answers are right and certified by vote, over the radius, beside the cosine certificate.

    Give the same command again to go on where it was stopped; noise levels, questions and attacks may be added.
    """
    from rich.console import Console

    from fs_runtime.embedded import load_embedded_model
    from fs_runtime.encoders import CheckpointError
    from fs_runtime.evaluation.answers.ask import CopyAsker
    from fs_runtime.evaluation.answers.measure import VoteRun, settings_of
    from fs_runtime.evaluation.answers.plan import VotePlan
    from fs_runtime.evaluation.answers.plots import write_plots
    from fs_runtime.evaluation.answers.records import VoteAttackFile, VoteFile
    from fs_runtime.evaluation.answers.report import write_report
    from fs_runtime.evaluation.answers.summary import Outcomes
    from fs_runtime.evaluation.robustness.answers import Answerer
    from fs_runtime.loading.engine import load_smoother, resolve_device
    from fs_runtime.system.files import TrainingError
    from fs_runtime.system.progress_bar import ProgressBar

    levels = _levels(sigmas)
    plan = VotePlan(
        sigmas=levels,
        samples=_counts(samples),
        confidence=probability("--confidence", confidence),
        max_new_tokens=max_tokens,
        seed=seed,
        attacked=attack,
        attack_sigma=_attack_sigma(attack_sigma, levels),
        attack_sizes=tuple(sorted(set(positive_numbers("--attack-sizes", attack_sizes, float)))),
        steps=steps,
        restarts=restarts,
        draws=draws,
        judging=judging,
    )
    if plots:
        check_plots()
    checkpoint = checkpoint_of(model)
    if attack:
        _check_attack(checkpoint)
    questions = _questions(items, limit, seed, model)
    console = Console(stderr=True)
    device = resolve_device(device)
    smoother = load_smoother(checkpoint, psm=psm, device=device, dtype="float32")
    try:
        language = load_embedded_model(checkpoint, device=device)
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from None
    settings = settings_of(smoother, language, questions)
    try:
        votes = VoteFile(results / "votes.jsonl", plan.vote_settings() | settings)
        turns = VoteAttackFile(results / "attacks.jsonl", plan.attack_settings() | settings) if attack else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="RESULTS") from None
    scorer = Answerer(Path(checkpoint), device) if attack else None
    try:
        run = VoteRun(plan, questions, CopyAsker(smoother, language, max_tokens), votes, turns, scorer)
        console.print(
            f"{len(questions)} questions; votes to take: {len(run.missing)}; about {_duration(run.seconds)}"
            + (" at most, with the attacks" if attack else "")
        )
        with ProgressBar(console=console, speed_estimate_period=600) as progress:
            task = progress.add_task("measuring", total=run.seconds)
            run.measure(lambda seconds, text: progress.update(task, advance=seconds, description=text))
            progress.update(task, completed=progress.tasks[task].total, description="measured")
        outcomes = Outcomes(plan, questions, votes.results)
        found = [] if turns is None else list(turns.results.values())
        written = write_report(results, outcomes, found, votes.settings)
    except TrainingError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    written += write_plots(results, outcomes) if plots else []
    for path in written:
        console.print(f"wrote {path}", markup=False)


def _levels(text: str) -> tuple[float, ...]:
    levels = positive_numbers("--sigmas", text, float)
    if min(levels) < MIN_SIGMA:
        raise typer.BadParameter(f"--sigmas must be at least {MIN_SIGMA:g}, not {min(levels):g}")
    return tuple(sorted(set(levels)))


def _counts(text: str) -> tuple[int, ...]:
    counts = positive_numbers("--samples", text, int)
    if min(counts) < _LEAST_COPIES:
        raise typer.BadParameter(f"--samples must be at least {_LEAST_COPIES}, not {min(counts)}: 8 only choose")
    return tuple(sorted(set(counts)))


def _attack_sigma(wanted: float | None, levels: tuple[float, ...]) -> float:
    if wanted is None:
        return 0.25 if 0.25 in levels else levels[0]
    if wanted not in levels:
        raise typer.BadParameter(f"{wanted:g} is not among --sigmas", param_hint="--attack-sigma")
    return wanted


def _check_attack(checkpoint: str) -> None:
    """Attacks go through the language model of transformers, whose parts have LLaVA's names."""
    from fs_runtime.encoders import CheckpointError, load_family

    try:
        family = load_family(checkpoint)
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from None
    if family.model_type != "llava" or not Path(checkpoint).is_dir():
        raise typer.BadParameter(
            f"attacks need the folder of a LLaVA model, and {checkpoint} ({family.name}) is none; leave it out",
            param_hint="--attack",
        )


def _questions(items: Path | None, limit: int | None, seed: int, model: str) -> list[VotedItem]:
    from fs_runtime.evaluation.answers.items import ItemsError, held_out, own_items

    try:
        if items is not None:
            return own_items(items, limit)
        if model != "reference":
            raise ItemsError("the held-out questions are those of the reference model; give yours with --items")
        return held_out(limit or 600, seed)
    except ItemsError as error:
        raise typer.BadParameter(str(error), param_hint="--items") from None


def _duration(seconds: float) -> str:
    """In words; a first guess needs no more than two digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
