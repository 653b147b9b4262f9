"""``fs-serve train reference``: trains the reference model from scratch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs_runtime.cli.evaluate.reference import measure_reference, resolve_device

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlavaForConditionalGeneration


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
    """Train the reference model from scratch, save it, and measure it."""
    from dataclasses import replace

    from rich.console import Console

    from fs_runtime.reference.model import save_reference
    from fs_runtime.reference.train import settings_for, train_with_progress

    console = Console()
    settings = settings_for(resolve_device(device))
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
        measure_reference(output, questions, settings.device, as_json=False, show_mistakes=0)
