"""The table of the commands that need no gateway."""

from __future__ import annotations

import functools

import typer

bench = typer.Typer(no_args_is_help=True, help="Measure speed; ratios are against baselines of the same run.")
train = typer.Typer(no_args_is_help=True, help="Train the models that ship with the project.")
evaluate = typer.Typer(no_args_is_help=True, help="Measure accuracy, certificates, and what attacks do to both.")


@functools.cache
def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands to the command line, once."""
    from fs_runtime.cli.bench.bets import bench_bets
    from fs_runtime.cli.bench.certify import bench_certify
    from fs_runtime.cli.bench.smoothing import bench_smoothing
    from fs_runtime.cli.certify import certify
    from fs_runtime.cli.evaluate.answers import evaluate_answers
    from fs_runtime.cli.evaluate.certificate_attack import certificate_attack
    from fs_runtime.cli.evaluate.certificates import evaluate_certificates
    from fs_runtime.cli.evaluate.features import evaluate_features
    from fs_runtime.cli.evaluate.masking import evaluate_masking
    from fs_runtime.cli.evaluate.photographs import evaluate_photographs
    from fs_runtime.cli.evaluate.purifier import evaluate_purifier
    from fs_runtime.cli.evaluate.reference import evaluate as evaluate_reference
    from fs_runtime.cli.evaluate.robustness import robustness
    from fs_runtime.cli.keygen import keygen
    from fs_runtime.cli.models import models
    from fs_runtime.cli.train.psm import train as train_psm
    from fs_runtime.cli.train.purifier import train as train_purifier
    from fs_runtime.cli.train.reference import train as train_reference
    from fs_runtime.cli.train.robust_encoder import train as train_robust_encoder
    from fs_runtime.cli.verify import verify

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
    evaluate.command("photographs")(evaluate_photographs)
    evaluate.command("answers")(evaluate_answers)
    evaluate.command("purifier")(evaluate_purifier)
    app.add_typer(train, name="train")
    app.add_typer(evaluate, name="evaluate")
