"""Commands without a gateway: ``models``, ``certify``, ``verify``, ``keygen``, ``bench``, ``train``, ``evaluate``."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console

from fs_runtime.reference import reference_model_path

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Checkpoint folder, hub id, or 'reference' for the one that ships.")
]
PsmOption = Annotated[
    str, typer.Option(help="Purifier and mapper: a folder of `train psm`, 'none', or 'auto' for those that ship.")
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


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands to the command line."""
    from fs_runtime.bench_certify_command import bench_certify
    from fs_runtime.bench_smoothing_command import bench_smoothing
    from fs_runtime.certificate_attack_command import certificate_attack
    from fs_runtime.certify_command import certify
    from fs_runtime.evaluation.certificates_cli import evaluate_certificates
    from fs_runtime.evaluation.cli import robustness
    from fs_runtime.feature_survey_command import evaluate_features
    from fs_runtime.models_command import models
    from fs_runtime.psm.cli import train as train_psm
    from fs_runtime.receipts.cli import keygen, verify
    from fs_runtime.reference.cli import evaluate as evaluate_reference
    from fs_runtime.reference.cli import train as train_reference

    for command in (models, certify, verify, keygen):
        app.command()(command)
    bench.command("smoothing")(bench_smoothing)
    bench.command("certify")(bench_certify)
    app.add_typer(bench, name="bench")
    train.command("reference")(train_reference)
    train.command("psm")(train_psm)
    evaluate.command("reference")(evaluate_reference)
    evaluate.command("features")(evaluate_features)
    evaluate.command("certificate-attack")(certificate_attack)
    evaluate.command("robustness")(robustness)
    evaluate.command("certificates")(evaluate_certificates)
    app.add_typer(train, name="train")
    app.add_typer(evaluate, name="evaluate")


@bench.command("bets")
def bench_bets(
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    samples: Annotated[int, typer.Option(min=32, help="Samples at most; reported at 32, 64, 128 and so on.")] = 4096,
    alphas: Annotated[str, typer.Option(help="Values of α, separated by commas.")] = "0.05,0.01,0.001",
    sigmas: Annotated[
        str, typer.Option(help="Noise levels for the model's features, separated by commas; '' for made-up laws only.")
    ] = "0.05,0.25",
    streams: Annotated[int, typer.Option(min=1, help="Sequences of each made-up law.")] = 8,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """How far below the true norm each way of betting stays: the price of a certificate in samples."""
    from fs_runtime.bench_bets import feature_laws, measure_costs, measure_deficits, synthetic_laws
    from fs_runtime.bench_bets_table import cost_table, deficit_tables
    from fs_runtime.loading import load_smoother
    from fs_runtime.pictures import read_picture
    from fs_runtime.reference import example_images

    try:
        tried = [float(alpha) for alpha in alphas.split(",")]
        levels = [float(sigma) for sigma in sigmas.split(",") if sigma]
    except ValueError:
        raise typer.BadParameter("alphas and sigmas are numbers separated by commas, for example 0.05,0.001") from None
    if not all(0 < alpha < 1 for alpha in tried):
        raise typer.BadParameter("alphas lie strictly between 0 and 1, for example 0.05,0.001")
    if not all(sigma > 0 for sigma in levels):
        raise typer.BadParameter("sigmas are above 0, for example 0.05,0.25")
    counts = [2**k for k in range(5, samples.bit_length()) if 2**k <= samples]
    with Console(stderr=True).status("measuring") as status:
        laws = list(synthetic_laws(counts[-1], streams))
        if levels:
            smoother = load_smoother(checkpoint_of(model), psm=psm, device=device, dtype=dtype)
            images = {name: read_picture(path) for name, path in example_images().items()}
            for sigma in levels:
                status.update(f"features of {model}, σ = {sigma:g}")
                laws += feature_laws(smoother, images, sigma, counts[-1])
        costs = measure_costs()
        deficits = [found for law in laws for found in measure_deficits(law, tried, counts, status.update)]
    if as_json:
        found = {
            "deficits": [dataclasses.asdict(row) for row in deficits],
            "costs": [dataclasses.asdict(row) for row in costs],
        }
        typer.echo(json.dumps(found, indent=2))
        return
    for table in [*deficit_tables(deficits), cost_table(costs)]:
        Console().print(table)
