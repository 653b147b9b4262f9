"""``fs-serve evaluate reference``: measures the reference model on held-out scenes and digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


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
    from fs_runtime.reference import reference_model_path

    passed = measure_reference(model or reference_model_path(), questions, resolve_device(device), as_json, mistakes)
    if not passed:
        raise typer.Exit(1)


def resolve_device(device: str) -> str:
    """The device that ``--device`` selects."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def measure_reference(folder: Path, questions: int, device: str, as_json: bool, show_mistakes: int) -> bool:
    """Prints the scores of a reference model; returns whether it reaches the required accuracy."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from fs_runtime.reference.evaluate import REQUIRED, evaluate_reference
    from fs_runtime.system.progress_bar import ProgressBar

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
