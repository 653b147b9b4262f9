"""``fs-serve evaluate certificate-attack``: attacks the certificate itself."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from fs_runtime.cli.options import (
    LARGEST_SEED,
    DeviceOption,
    JsonOption,
    ModelOption,
    PsmOption,
    checkpoint_of,
    positive,
    positive_numbers,
    probability,
)


def certificate_attack(
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    sigma: Annotated[float, typer.Option(help="Noise level in pixels of [0, 1].")] = 0.25,
    ratios: Annotated[str, typer.Option(help="Radii as multiples of sigma, separated by commas.")] = "0.25,0.5,1",
    images: Annotated[int, typer.Option(min=1, help="Held-out scenes to attack.")] = 4,
    draws: Annotated[int, typer.Option(min=1, help="Noisy copies behind each gradient, the same at every step.")] = 64,
    steps: Annotated[int, typer.Option(min=1, help="Gradient steps of each restart.")] = 20,
    restarts: Annotated[int, typer.Option(min=1, help="Random starts.")] = 2,
    samples: Annotated[
        int, typer.Option(min=64, help="Noisy copies behind the certificate and behind the test.")
    ] = 1024,
    confidence: Annotated[float, typer.Option(help="Probability that a certificate holds.")] = 0.999,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Of scenes and draws.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Attack the certificate: compare the lowest similarity reached with the bound; exit status 1 if it is below."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from fs_runtime.attacks.certificate_attack import attack_certificate
    from fs_runtime.loading.engine import load_smoother
    from fs_runtime.reference.scenes import render, sample_scene
    from fs_runtime.system.progress_bar import ProgressBar

    confidence, sigma = probability("confidence", confidence), positive("sigma", sigma)
    radii = [sigma * ratio for ratio in positive_numbers("ratios", ratios, float)]
    smoother = load_smoother(checkpoint_of(model), psm=psm, device=device, dtype="float32")
    rng = np.random.default_rng((seed, 0))
    prepared = [smoother.encoder.prepare(np.asarray(render(sample_scene(rng)))) for _ in range(images)]
    with ProgressBar(console=Console(stderr=True), transient=True) as progress:
        evaluations = len(radii) * restarts * (steps + 1)
        task = progress.add_task("attacking", total=evaluations)
        results = attack_certificate(
            smoother,
            prepared,
            sigma,
            radii,
            draws=draws,
            steps=steps,
            restarts=restarts,
            samples=samples,
            confidence=confidence,
            seed=seed,
            report=lambda: progress.advance(task),
        )
    held = all(result.holds for result in results)
    if as_json:
        typer.echo(json.dumps({"held": held, "results": [dataclasses.asdict(r) for r in results]}, indent=2))
        raise typer.Exit(0 if held else 1)
    table = Table("image", "r", "r/σ", "ρ ≥", "FCSB", "tight", "certified", "at estimates", "reached", "±", "holds")
    for result in results:
        table.add_row(
            str(result.image),
            f"{result.radius:.4f}",
            f"{result.radius / sigma:g}",
            f"{result.norm_lower:.4f}",
            *(
                f"{value:.4f}" if value else "none"
                for value in (result.fcsb, result.tight, result.certified, result.at_estimate)
            ),
            f"{result.reached:.4f}",
            f"{result.standard_error:.4f}",
            "yes" if result.holds else "NO",
        )
    console = Console()
    console.print(table)
    console.print(
        "No attack got below a certified bound." if held else "An attack got below a certified bound: please report it."
    )
    raise typer.Exit(0 if held else 1)
