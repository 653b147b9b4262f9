"""Commands that need no gateway: ``certify``, ``bench``, ``train``, ``evaluate``."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.reference import reference_model_path

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Checkpoint folder, hub id, or 'reference' for the one that ships.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<index>.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]

bench = typer.Typer(no_args_is_help=True, help="Measure speed; ratios are against baselines of the same run.")
train = typer.Typer(no_args_is_help=True, help="Train the models that ship with the project.")
evaluate = typer.Typer(no_args_is_help=True, help="Measure accuracy.")


def checkpoint_of(model: str) -> str:
    """Folder or hub id that a ``--model`` option means."""
    return str(reference_model_path()) if model == "reference" else model


def add_commands(app: typer.Typer) -> None:
    """Adds this module's commands to the command line."""
    from fs_runtime.reference.cli import evaluate as evaluate_reference
    from fs_runtime.reference.cli import train as train_reference

    app.command()(certify)
    app.add_typer(bench, name="bench")
    train.command("reference")(train_reference)
    evaluate.command("reference")(evaluate_reference)
    app.add_typer(train, name="train")
    app.add_typer(evaluate, name="evaluate")


def certify(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Picture to certify.")],
    model: ModelOption = "reference",
    sigma: Annotated[float, typer.Option(min=0.0, help="Noise level in pixels of [0, 1].")] = 0.05,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples.")] = 256,
    confidence: Annotated[float, typer.Option(help="Probability that the certificate holds.")] = 0.999,
    radius: Annotated[float | None, typer.Option(min=0.0, help="l2 radius; by default half of sigma.")] = None,
    space: Annotated[str, typer.Option(help="Measure the radius on the 'model' or the 'client' image.")] = "model",
    granularity: Annotated[str, typer.Option(help="'image' or 'token'.")] = "image",
    min_similarity: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Stop sampling once this similarity is certified; exit status 1 if it is not."
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Certify one image: how far its features can be moved by an attack, and with what confidence."""
    from fs_runtime.engine import SmoothingRequest
    from fs_runtime.loading import load_engine
    from fs_runtime.pictures import read_picture
    from fs_runtime.query import CertificateQuery
    from fs_runtime.robustness import Fingerprints
    from fs_runtime.robustness import certify as certify_result

    if not 0 < confidence < 1:
        raise typer.BadParameter("confidence lies strictly between 0 and 1, for example 0.999")
    if space not in ("model", "client"):
        raise typer.BadParameter("space is 'model' or 'client'")
    if granularity not in ("image", "token"):
        raise typer.BadParameter("granularity is 'image' or 'token'")
    try:
        pixels = read_picture(image)
    except OSError:
        raise typer.BadParameter(f"{image} is not a picture that can be read") from None
    query = CertificateQuery(
        sigma / 2 if radius is None else radius, "client" if space == "client" else "model", min_similarity
    )
    engine = load_engine(checkpoint_of(model), device=device, dtype=dtype)
    try:
        kind: Literal["image", "token"] = "token" if granularity == "token" else "image"
        request = SmoothingRequest(pixels, sigma, samples if sigma > 0 else 1, confidence, kind, until=query)
        result = engine.submit(request).result()
    finally:
        engine.close()
    certificate = certify_result(result, query, Fingerprints(engine.encoder.fingerprint, None, None))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(certificate), indent=2))
        raise typer.Exit(1 if certificate.satisfied is False else 0)
    table = Table(title=f"{image.name}: certified with {certificate.confidence:.2%} confidence", show_header=False)
    for name, value in _rows(dataclasses.asdict(certificate)):
        table.add_row(name, value)
    if min_similarity is not None:
        endings = {
            "reached": "sampling ended there",
            "out_of_reach": "sampling ended early, since it will not be reached with the samples allowed",
            "samples": "all samples were used",
        }
        verdict = "reached" if certificate.satisfied else "NOT reached"
        table.add_row(f"asked similarity {min_similarity:g}", f"{verdict}; {endings[certificate.ended]}")
    Console().print(table)
    raise typer.Exit(1 if certificate.satisfied is False else 0)


def _rows(certificate: dict[str, Any]) -> list[tuple[str, str]]:
    def number(value: float | None) -> str:
        return "none" if value is None else f"{value:.4f}"

    half = certificate["certified_radius"][0]
    return [
        ("noise level σ", f"{certificate['sigma']:g}"),
        ("samples", str(certificate["samples"])),
        ("ρ, lower bound", number(certificate["norm"]["lower"])),
        ("ρ, estimate (not certified)", number(certificate["norm"]["estimate"])),
        (
            "ℓ2 radius asked (model / client)",
            f"{certificate['radius']['model']:.4f} / {certificate['radius']['client']:.4f}",
        ),
        ("certified similarity, tight", number(certificate["smoothed"]["tight"])),
        ("certified similarity, FCSB of the paper", number(certificate["smoothed"]["fcsb"])),
        ("certified similarity of what is served", number(certificate["served"]["tight"])),
        ("estimated similarity (not certified)", number(certificate["estimate"]["tight"])),
        (
            "radius for similarity 0.5 (model / client)",
            f"{half['tight']['model']:.4f} / {half['tight']['client']:.4f}",
        ),
    ]


@bench.command("smoothing")
def bench_smoothing(
    model: ModelOption = "reference",
    shape: Annotated[
        str | None, typer.Option(help="Instead of a model: random weights in the shape of 'clip-vit-l-14-336'.")
    ] = None,
    samples: Annotated[int, typer.Option(min=8, help="Samples in each measurement.")] = 512,
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to try, separated by commas.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each; the median is reported.")] = 9,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """The smoothing pass beside the bare encoder at its best batch and a plain per-sample loop."""
    from fs_runtime.bench import benchmark_smoothing
    from fs_runtime.loading import load_smoother
    from fs_runtime.random_models import write_random_llava

    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            checkpoint = str(write_random_llava(shape, Path(folder))) if shape else checkpoint_of(model)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        smoother = load_smoother(checkpoint, device=device, dtype=dtype)
        on = str(smoother.encoder.device)
        plain = load_smoother(checkpoint, device=on, dtype="float32").encoder
    default = "8,16,32,64" if on == "cpu" else "32,64,128,256"
    try:
        sizes = [int(size) for size in (batch_sizes or default).split(",")]
    except ValueError:
        raise typer.BadParameter("batch sizes are whole numbers separated by commas, for example 16,32") from None
    with console.status("measuring") as status:
        found = benchmark_smoothing(
            smoother, plain, batch_sizes=sizes, samples=samples, rounds=rounds, progress=status.update
        )
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        return
    table = Table("", "samples/s", "ratio", title=f"{shape or model}: smoothing on {found.device}, {found.dtype}")
    for size, rate in found.encoder_rates.items():
        table.add_row(f"bare encoder, batch {size}", f"{rate:.0f}", "")
    table.add_row(f"bare encoder, best batch {found.batch_size}", f"{found.encoder:.0f}", "1 (ceiling)")
    table.add_row("smoothing pass", f"{found.smoothing:.0f}", f"{found.of_encoder:.3f} of the bare encoder")
    table.add_row("plain loop", f"{found.plain_loop:.0f}", f"pass is {found.over_plain_loop:.2f} x this")
    Console().print(table)
