"""Commands without a gateway: ``models``, ``certify``, ``verify``, ``keygen``, ``bench``, ``train``, ``evaluate``."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from fs_runtime.reference import reference_model_path

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Checkpoint folder, hub id, or 'reference' for the one that ships.")
]
PsmOption = Annotated[
    str,
    typer.Option(help="Purifier and mapper: a folder of `train psm`, a purifier that ships ('small'), 'none', 'auto'."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
MaxPixelsOption = Annotated[
    int,
    typer.Option(min=0, help="Most pixels of an image, for models that read any resolution; 0 takes the model's own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]

bench = typer.Typer(no_args_is_help=True, help="Measure speed; ratios are against baselines of the same run.")
train = typer.Typer(no_args_is_help=True, help="Train the models that ship with the project.")
evaluate = typer.Typer(no_args_is_help=True, help="Measure accuracy, certificates, and what attacks do to both.")


def checkpoint_of(model: str) -> str:
    """Folder or hub id that a ``--model`` option means."""
    return str(reference_model_path()) if model == "reference" else model


@functools.cache
def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands to the command line, once."""
    from fs_runtime.bench_bets_command import bench_bets
    from fs_runtime.bench_certify_command import bench_certify
    from fs_runtime.bench_smoothing_command import bench_smoothing
    from fs_runtime.certificate_attack_command import certificate_attack
    from fs_runtime.certify_command import certify
    from fs_runtime.evaluation.certificates_cli import evaluate_certificates
    from fs_runtime.evaluation.cli import robustness
    from fs_runtime.evaluation.denoising_cli import evaluate_purifier
    from fs_runtime.evaluation.masking_cli import evaluate_masking
    from fs_runtime.feature_survey_command import evaluate_features
    from fs_runtime.models_command import models
    from fs_runtime.psm.cli import train as train_psm
    from fs_runtime.psm.purifier_cli import train as train_purifier
    from fs_runtime.receipts.cli import keygen, verify
    from fs_runtime.reference.cli import evaluate as evaluate_reference
    from fs_runtime.reference.cli import train as train_reference
    from fs_runtime.robust_encoder.cli import train as train_robust_encoder

    for command in (models, certify, verify, keygen):
        app.command()(command)
    bench.command("smoothing")(bench_smoothing)
    bench.command("certify")(bench_certify)
    bench.command("bets")(bench_bets)
    app.add_typer(bench, name="bench")
    train.command("reference")(train_reference)
    train.command("psm")(train_psm)
    train.command("purifier")(train_purifier)
    train.command("robust-encoder")(train_robust_encoder)
    evaluate.command("reference")(evaluate_reference)
    evaluate.command("features")(evaluate_features)
    evaluate.command("certificate-attack")(certificate_attack)
    evaluate.command("robustness")(robustness)
    evaluate.command("masking")(evaluate_masking)
    evaluate.command("certificates")(evaluate_certificates)
    evaluate.command("purifier")(evaluate_purifier)
    app.add_typer(train, name="train")
    app.add_typer(evaluate, name="evaluate")
