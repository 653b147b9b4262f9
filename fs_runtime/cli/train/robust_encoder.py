"""``fs-serve train robust-encoder``: trains a vision tower against attacks (FARE)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fs_runtime.cli.options import DeviceOption, ModelOption
from fs_runtime.cli.train.run import BatchOption, CheckpointOption, ImagesOption, PrecisionOption, WorkersOption


def train(
    output: Annotated[Path, typer.Option(help="Folder for the tower; an interrupted run there resumes.")],
    images: ImagesOption,
    model: ModelOption = "reference",
    epsilon: Annotated[float, typer.Option(help="Radius of the l-infinity ball to train against, in 255ths.")] = 8.0,
    attack_steps: Annotated[int, typer.Option(min=1, help="PGD steps behind each training step.")] = 10,
    epochs: Annotated[float, typer.Option(min=0.0, help="Passes over the pictures.")] = 2.0,
    rate: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = 1e-5,
    batch_size: BatchOption = 32,
    seed: Annotated[int, typer.Option(min=0, help="Fixes order and starting points.")] = 0,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    workers: WorkersOption = None,
    checkpoint_every: CheckpointOption = 100,
) -> None:
    """Train a model's vision tower against attacks on its features (FARE); its language model is not loaded."""
    from fs_runtime.cli.train.run import mixed_precision, open_run, require_training_packages
    from fs_runtime.loading.engine import resolve_device
    from fs_runtime.system.files import TrainingError

    require_training_packages()
    from fs_runtime.training.fare import RobustEncoderSettings, train_robust_encoder
    from fs_runtime.training.loop import StageSettings

    device = resolve_device(device)
    try:
        settings = RobustEncoderSettings(
            epsilon=epsilon / 255,
            attack_steps=attack_steps,
            optimisation=StageSettings(epochs, rate, weight_decay=1e-4),
            batch_size=batch_size,
            seed=seed,
            precision=mixed_precision(precision, device),
        )
        with open_run(model, images, output, device, settings.precision, workers, frozen=False) as run:
            card = train_robust_encoder(
                run.encoder,
                run.pictures,
                output,
                settings,
                facts=run.facts,
                accelerator=run.accelerator,
                workers=run.workers,
                checkpoint_every=checkpoint_every,
                report=run.report,
            )
    except TrainingError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    if run.accelerator.is_main_process:
        found = card["held_out_cosine"]
        run.console.print(
            f"Cosine with the original's features at {epsilon:g}/255: clean {found['clean']:.4f}, "
            f"attacked {found['attacked']:.4f}; the original attacked {found['attacked, original']:.4f}"
        )
        run.console.print(f"The robust encoder is in {output}", markup=False)
