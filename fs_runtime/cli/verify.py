"""``fs-serve verify``: checks a receipt's signature, image, weights and numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from fs_runtime.cli.options import JsonOption, ModelOption, PsmOption, StatisticsOption, checkpoint_of
from fs_runtime.options import Dtype
from fs_runtime.receipts import ReceiptError, ReceiptKeyError, parse_receipt, read_public_key
from fs_runtime.rounding import at_least, percent

if TYPE_CHECKING:
    from fs_runtime.receipts.document import Receipt
    from fs_runtime.receipts.verify import Verification

EXIT_STATUS = {"reproduced": 0, "not_reproduced": 1, "cannot_be_checked": 2}
_VERDICTS = {
    "reproduced": "REPRODUCED",
    "not_reproduced": "NOT REPRODUCED",
    "cannot_be_checked": "CANNOT BE CHECKED",
}
_SIGNATURES = {
    "unsigned": "none: the receipt is unsigned",
    "valid": "valid, by a key that was not compared with one you trust",
    "trusted": "valid, by the key you trust",
    "invalid": "INVALID",
}


def verify(
    receipt: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Receipt to check.")],
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Picture it speaks of.")],
    public_key: Annotated[
        Path | None,
        typer.Option(help="PEM file of the public key that must have signed it; unsigned receipts then fail."),
    ] = None,
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    feature_statistics: StatisticsOption = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda or cuda:<index>; auto is the kind that made the receipt.")
    ] = "auto",
    dtype: Annotated[Dtype, typer.Option(help="Arithmetic; auto is that of the receipt.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Check a receipt: signature, image, weights, and the numbers, from the same draws made again.

    Exit status: 0 all reproduced, 1 not, 2 cannot be checked here.
    """
    from fs_runtime.loading.engine import load_smoother
    from fs_runtime.preprocessing.pictures import read_picture
    from fs_runtime.receipts.verify import CannotReplayError, Verification
    from fs_runtime.receipts.verify import verify as verify_receipt
    from fs_runtime.smoothing.smoother import Smoother

    try:
        trusted = read_public_key(public_key) if public_key else None
    except ReceiptKeyError as error:
        raise typer.BadParameter(str(error), param_hint="--public-key") from None
    try:
        pixels = read_picture(image)
    except OSError:
        raise typer.BadParameter(f"{image} is not a picture that can be read") from None
    try:
        parsed = parse_receipt(receipt.read_bytes())
    except ReceiptError as error:
        _report(Verification("cannot_be_checked", problems=[str(error)]), None, as_json)

    def load() -> Smoother:
        import torch

        on = parsed.arithmetic.device if device == "auto" else device
        if on.startswith("cuda") and not torch.cuda.is_available():
            raise CannotReplayError(
                f"{on} is wanted, and there is none here; cpu draws different noise from the same seed, so a receipt "
                "of cuda needs a machine with an NVIDIA GPU"
            )
        precision = parsed.arithmetic.dtype if dtype == "auto" else dtype
        # The receipt's cap on the resolution; a cap above the checkpoint's own has no effect.
        cap = parsed.preprocessing.steps.get("max_pixels")
        max_pixels = cap if isinstance(cap, int) and cap > 0 else 0
        return load_smoother(
            checkpoint_of(model),
            psm=psm,
            device=on,
            dtype=precision,
            max_pixels=max_pixels,
            quantization=parsed.arithmetic.quantization,
            feature_statistics=feature_statistics,
        )

    _report(verify_receipt(parsed, pixels, load, trusted), parsed, as_json)


def _similarity(value: float | None) -> str:
    return "none" if value is None else at_least(value)


def _report(found: Verification, receipt: Receipt | None, as_json: bool) -> None:
    """Prints the result and exits with its status."""
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=2, ensure_ascii=False))
        raise typer.Exit(EXIT_STATUS[found.verdict])
    table = Table("", Column(overflow="fold"), title=_VERDICTS[found.verdict], show_header=False)
    if receipt is not None:
        table.add_row("signature", _SIGNATURES[found.signature])
        table.add_row("key", found.key_id or "none")
        table.add_row("made", f"{receipt.created}, request {receipt.request_id or 'none'}")
        table.add_row("draws", f"{receipt.draws.samples}, σ = {receipt.draws.sigma:g}, seed {receipt.draws.seed}")
        if found.verdict == "reproduced":  # before that, the certificate's contents are not checked
            certificate = receipt.certificate
            table.add_row("ρ, lower bound", at_least(certificate["norm"]["lower"]))
            table.add_row("certified similarity", _similarity(certificate["smoothed"]["best"]))
            if found.replayed is not None:
                low, middle, high = map(_similarity, found.replayed)
                table.add_row("  as replayed", f"{middle}; the tolerance allows {low} to {high}")
            table.add_row("within an ℓ2 radius of (model)", at_least(certificate["radius"]["model"], 6))
            table.add_row("confidence", percent(certificate["confidence"]))
    if found.tolerance is not None:
        table.add_row("tolerance of ρ", f"{found.tolerance:g}")
    for problem in found.problems:
        table.add_row("problem", problem)
    for warning in found.warnings:
        table.add_row("note", warning)
    Console(highlight=False, markup=False).print(table)
    raise typer.Exit(EXIT_STATUS[found.verdict])
