"""The commands that train and measure the reference model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlavaForConditionalGeneration

app = typer.Typer(no_args_is_help=True, help="Train and measure the reference model.")


@app.command()
def train(
    output: Annotated[Path, typer.Argument(help="Folder for the trained model, in the Hugging Face format.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps. Default: 2600, or 5500 on a GPU.")] = None,
    vision_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps, at the start, that train the vision tower alone.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Conversations per step.")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Folder of a reference model to go on from, instead of random weights.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0, help="Peak learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="Fixes weights, data and their order.")] = 0,
    device: Annotated[
        str, typer.Option(help="Where to train: cpu, cuda, or auto for the GPU if there is one.")
    ] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that make the training data.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help="Be done by then, with fewer steps after the first phase if need be.")
    ] = None,
    questions: Annotated[int, typer.Option(min=0, help="Questions of each kind to measure it with; 0 for none.")] = 400,
) -> None:
    """Train the reference model from nothing, save it, and measure it."""
    from dataclasses import replace

    from rich.console import Console

    from .model import save_reference
    from .train import settings_for, train_with_progress

    console = Console()
    settings = settings_for(_resolve(device))
    settings = replace(
        settings,
        seed=seed,
        steps=settings.steps if steps is None else steps,
        vision_steps=settings.vision_steps if vision_steps is None else vision_steps,
        batch_size=settings.batch_size if batch_size is None else batch_size,
        learning_rate=settings.learning_rate if learning_rate is None else learning_rate,
        workers=settings.workers if workers is None else workers,
        start_from=start_from,
        time_limit=None if minutes is None else 60 * minutes,
    )

    def save(model: "LlavaForConditionalGeneration", tokenizer: "Tokenizer") -> None:
        save_reference(model, tokenizer, output)

    save(*train_with_progress(settings, console, save))
    console.print(f"Saved the model to {output}")
    if questions:
        _measure(output, questions, settings.device, as_json=False, show_mistakes=0)


@app.command()
def evaluate(
    model: Annotated[
        Path | None, typer.Option(help="Folder of a reference model. Default: the one that ships.")
    ] = None,
    questions: Annotated[int, typer.Option(min=8, help="Questions of each kind.")] = 400,
    device: Annotated[
        str, typer.Option(help="Where it runs: cpu, cuda, or auto for the GPU if there is one.")
    ] = "auto",
    mistakes: Annotated[int, typer.Option(min=0, help="Show this many wrong answers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
) -> None:
    """Measure the reference model on held-out scenes and digits; the exit status is 1 if it falls short."""
    from . import reference_model_path

    passed = _measure(model or reference_model_path(), questions, _resolve(device), as_json, mistakes)
    if not passed:
        raise typer.Exit(1)


def _resolve(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _measure(folder: Path, questions: int, device: str, as_json: bool, show_mistakes: int) -> bool:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fs_runtime.progress_bar import ProgressBar

    from .evaluate import REQUIRED, evaluate_reference

    with ProgressBar(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("asking", total=None)
        evaluation = evaluate_reference(
            folder,
            questions,
            device=device,
            report=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        rows = [
            {"kind": s.kind, "right": s.right, "total": s.total, "accuracy": s.accuracy, "interval_95": s.interval}
            for s in evaluation.scores
        ]
        required = {s.kind: {"accuracy": s.accuracy, "required": REQUIRED[s.kind]} for s in evaluation.required}
        typer.echo(json.dumps({"passed": evaluation.passed, "required": required, "scores": rows}, indent=2))
        return evaluation.passed
    table = Table("kind", "right", "of", "accuracy", "95% interval")
    for score in evaluation.scores:
        low, high = score.interval
        table.add_row(
            score.kind, str(score.right), str(score.total), f"{score.accuracy:.1%}", f"{low:.1%} to {high:.1%}"
        )
    console = Console()
    console.print(table)
    for score in evaluation.required:
        name = "questions other than describe" if score.kind == "questions" else score.kind
        console.print(f"{name}: {score.accuracy:.2%}, required {REQUIRED[score.kind]:.0%}")
    for mistake in evaluation.mistakes[:show_mistakes]:
        console.print(f"[{mistake.kind}] {mistake.question} → {mistake.given} (not: {mistake.expected})", markup=False)
    console.print(escape("Reached." if evaluation.passed else "Not reached."))
    return evaluation.passed


if __name__ == "__main__":
    app()
