"""``fs-serve evaluate purifier``: compares purifiers with classical denoisers, and their cost with an encoder's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fs_runtime.cli.options import DeviceOption, DtypeOption, positive_numbers

if TYPE_CHECKING:
    from fs_runtime.psm.network import PsmNetwork


def evaluate_purifier(
    output: Annotated[Path, typer.Argument(help="Folder for tables and pictures; what is measured there is kept.")],
    purifier: Annotated[
        list[str] | None,
        typer.Option(
            help="One that ships ('small'), the folder of a purifier or PSM, deepinv:NAME[:WEIGHTS] or "
            "diffusion:SOURCE; may be given several times."
        ),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures instead of the photographs that come with packages.")
    ] = None,
    sigma: Annotated[str, typer.Option(help="Noise levels in pixels of [0, 1], separated by commas.")] = "0.25,0.1,0.5",
    sides: Annotated[str, typer.Option(help="Pixels a side after resize and crop, separated by commas.")] = "336,224",
    draws: Annotated[int, typer.Option(min=1, help="Draws of the noise for each picture.")] = 1,
    baselines: Annotated[bool, typer.Option(help="Measure classical denoisers, too; BM3D takes its time.")] = True,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of the cost's measurement; 0 leaves it out.")] = 5,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Compare PSNR and SSIM of purifiers on photographs with BM3D and others, and their cost with an encoder's."""
    import torch
    from rich.console import Console
    from rich.progress import MofNCompleteColumn

    from fs_runtime.evaluation.denoising.cost import measure_costs, random_encoder
    from fs_runtime.evaluation.denoising.denoisers import BM3D, DESCRIPTIONS, NOISY, purifier_denoiser
    from fs_runtime.evaluation.denoising.denoisers import baselines as classical
    from fs_runtime.evaluation.denoising.measure import SMALLEST_SIDE, ScoreFile, cases, measure
    from fs_runtime.evaluation.denoising.photographs import PhotographsError, named_pictures, photographs
    from fs_runtime.evaluation.denoising.report import write_report
    from fs_runtime.loading.engine import resolve_device, resolve_dtype
    from fs_runtime.system.progress_bar import ProgressBar

    console = Console(stderr=True)
    device = resolve_device(device)
    precision = resolve_dtype(dtype, device)
    networks = _load(purifier or ["small"], device, getattr(torch, precision))
    if taken := networks.keys() & DESCRIPTIONS.keys():
        raise typer.BadParameter(f"a purifier cannot be called {taken.pop()!r}; give it another name")
    levels, sizes = positive_numbers("sigma", sigma, float), positive_numbers("sides", sides, int)
    if min(sizes) < SMALLEST_SIDE:
        raise typer.BadParameter(f"sides must be at least {SMALLEST_SIDE}, the window of the SSIM; got {sides}")
    try:
        shown = named_pictures(pictures) if pictures else photographs()
        known, left_out = classical()
        file = ScoreFile(output)
    except PhotographsError as error:
        raise typer.BadParameter(str(error)) from None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="OUTPUT") from None
    if not baselines:
        known, left_out = [one for one in known if one.name == NOISY], []
    for sentence in left_out:
        console.print(sentence, style="yellow")
    rows = [*known, *(purifier_denoiser(name, network) for name, network in networks.items())]
    wanted = cases(shown, sizes, levels, draws)
    with ProgressBar(*ProgressBar.get_default_columns(), MofNCompleteColumn(), console=console) as progress:
        task = progress.add_task("measuring", total=len(wanted) * len(rows))
        scores = measure(shown, wanted, rows, file, lambda text: progress.update(task, advance=1, description=text))
        costs = None
        if rounds:
            progress.update(task, description="cost")
            batch_size = 1 if device == "cpu" else 32
            encoder = random_encoder(device, precision)
            costs = measure_costs(
                encoder,
                networks,
                batch_size=batch_size,
                rounds=rounds,
                progress=lambda text: progress.update(task, description=text),
            )
    columns = [NOISY, *networks, *([BM3D] if any(row.name == BM3D for row in rows) else [])]
    for path in write_report(output, shown, scores, file, columns, costs):
        console.print(f"wrote {path}", markup=False)


def _load(names: list[str], device: str, dtype: object) -> dict[str, PsmNetwork]:
    """The purifiers by their names in the tables: those of their cards, or else of their folders."""
    import torch

    from fs_runtime.psm.pretrained import is_pretrained, label, pretrained_purifier
    from fs_runtime.psm.shipped import shipped_purifiers
    from fs_runtime.psm.storage import load_purifier, prepare_for_inference

    assert isinstance(dtype, torch.dtype)  # noqa: S101
    shipped = shipped_purifiers()
    found: dict[str, PsmNetwork] = {}
    for name in names:
        if is_pretrained(name):
            network, called = prepare_for_inference(pretrained_purifier(name), device, dtype), label(name)
        else:
            folder = shipped.get(name, Path(name))
            network, card = load_purifier(folder, device, dtype)
            called = str(card.get("name", folder.resolve().name))
        if called in found:
            raise typer.BadParameter(f"two are called {called!r}; give one another name", param_hint="--purifier")
        found[called] = network
    return found
