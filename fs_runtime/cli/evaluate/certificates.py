"""``fs-serve evaluate certificates``: compares our certificates with others, at equal numbers of samples."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fs_runtime.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PsmOption,
    check_folder,
    check_plots,
    checkpoint_of,
    positive,
    probability,
)
from fs_runtime.system.progress_bar import ProgressBar

_PICTURES_SEED = (9_000_001, 1)  # differs from the seeds of training


def evaluate_certificates(
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    images: Annotated[int, typer.Option(min=1, help="Held-out scenes.")] = 16,
    sigma: Annotated[float, typer.Option(help="Noise level in pixels of [0, 1].")] = 0.25,
    samples: Annotated[int, typer.Option(min=32, help="Samples at most; reported at 32, 64, 128 and so on.")] = 2048,
    confidence: Annotated[float, typer.Option(help="Probability that a certificate holds.")] = 0.999,
    markdown: Annotated[
        Path | None, typer.Option(dir_okay=False, writable=True, help="Write the tables as Markdown to this file.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write NAME.png and NAME.svg: similarity against samples.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare certified similarities, with and without purifier and mapper, at equal numbers of samples."""
    import numpy as np

    from fs_runtime.evaluation.certificates.compare import compare_certificates
    from fs_runtime.evaluation.certificates.report import certificate_tables, certificates_markdown, plot_certificates
    from fs_runtime.loading.engine import load_smoother
    from fs_runtime.reference.scenes import render, sample_scene

    confidence, sigma = probability("confidence", confidence), positive("sigma", sigma)
    check_folder("markdown", markdown)
    check_folder("plot", plot)
    if plot is not None:
        check_plots()
    checkpoint = checkpoint_of(model)
    smoothers = [(False, load_smoother(checkpoint, psm="none", device=device, dtype=dtype))]
    if psm != "none":
        smoothers.append((True, load_smoother(checkpoint, psm=psm, device=device, dtype=dtype)))
    rng = np.random.default_rng(_PICTURES_SEED)
    pictures = [np.asarray(render(sample_scene(rng))) for _ in range(images)]
    counts = [2**k for k in range(5, samples.bit_length())]
    errors = Console(stderr=True)
    with ProgressBar(console=errors, transient=True) as progress:
        task = progress.add_task("sampling", total=len(smoothers) * images * counts[-1])
        comparison = compare_certificates(
            smoothers,
            pictures,
            sigma=sigma,
            confidence=confidence,
            counts=counts,
            advance=lambda done: progress.advance(task, done),
        )
    if markdown is not None:
        markdown.write_text(certificates_markdown(comparison), encoding="utf-8")
    if plot is not None:
        for path in plot_certificates(comparison, plot):
            errors.print(f"wrote {path}")
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(comparison), indent=2))
        return
    for table in certificate_tables(comparison):
        Console().print(table)
