"""``fs-serve bench bets``: tightness of the bound of ρ, and cost, of each betting scheme; as tables and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli.bench.output import present
from fs_runtime.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    PsmOption,
    checkpoint_of,
    number_list,
)

if TYPE_CHECKING:
    from fs_runtime.benchmarks.bets import Deficit, SchemeCost


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
    """Gap between the true norm and its lower bound for each betting scheme: the cost of a certificate in samples."""
    from fs_runtime.benchmarks.bets import feature_laws, measure_costs, measure_deficits, synthetic_laws
    from fs_runtime.loading.engine import load_smoother
    from fs_runtime.preprocessing.pictures import read_picture
    from fs_runtime.reference import example_images

    tried = number_list(alphas, float, "--alphas", "0.05,0.001")
    levels = number_list(sigmas, float, "--sigmas", "0.05,0.25")
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
    present(
        {"deficits": deficits, "costs": costs},
        lambda: [*deficit_tables(deficits), cost_table(costs)],
        as_json=as_json,
    )


def deficit_tables(deficits: Sequence[Deficit]) -> Iterator[Table]:
    """A table of the deficits for each law and α, by number of samples; then a summary relative to the best scheme."""
    found = {(row.law, row.alpha, row.scheme, row.samples): row.deficit for row in deficits}
    laws, alphas, schemes, counts = (list(dict.fromkeys(part)) for part in zip(*found, strict=True))
    for law in laws:
        for alpha in alphas:
            table = Table("ρ - lower bound", *(f"n = {n}" for n in counts), title=f"{law}, α = {alpha:g}")
            for scheme in schemes:
                table.add_row(scheme, *(f"{found[law, alpha, scheme, n]:.4f}" for n in counts))
            yield table
    summary = Table(
        "scheme", *laws, title="ρ - lower bound, as a multiple of the best scheme's (geometric mean over n and α)"
    )
    for scheme in schemes:
        ratios = [
            [
                found[law, a, scheme, n] / min(found[law, a, other, n] for other in schemes)
                for a in alphas
                for n in counts
            ]
            for law in laws
        ]
        summary.add_row(scheme, *(f"{np.exp(np.mean(np.log(values))):.3f}" for values in ratios))
    yield summary


def cost_table(costs: Sequence[SchemeCost]) -> Table:
    """Table of the schemes' time for 256 samples and of their memory."""
    table = Table("scheme", "streams", "processor time of 256 samples", "bytes kept for each stream")
    for cost in costs:
        table.add_row(cost.scheme, str(cost.streams), f"{1e3 * cost.seconds:.3g} ms", str(cost.state_bytes))
    return table
