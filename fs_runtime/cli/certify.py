"""``fs-serve certify``: prints one picture's certificate as a table or as JSON, and plots it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fs_runtime.cli.change_in_words import change_in_words
from fs_runtime.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    MaxPixelsOption,
    ModelOption,
    PsmOption,
    StatisticsOption,
    check_plots,
    checkpoint_of,
)
from fs_runtime.options import DEFAULT_MAX_PIXELS, Granularity, Space, Stage
from fs_runtime.receipts import ReceiptKeyError, read_signing_key
from fs_runtime.receipts.signing import SigningKey
from fs_runtime.rounding import at_least, at_most, percent

if TYPE_CHECKING:
    from fs_runtime.robustness import ImageRobustness


def certify(
    image: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="Picture to certify.")],
    model: ModelOption = "reference",
    psm: PsmOption = "auto",
    feature_statistics: StatisticsOption = None,
    sigma: Annotated[
        float | None, typer.Option(min=0.0, help="Noise level in pixels of [0, 1]; by default what suits the PSM.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Noise samples.")] = 256,
    confidence: Annotated[float, typer.Option(help="Probability that the certificate holds.")] = 0.999,
    radius: Annotated[float | None, typer.Option(min=0.0, help="l2 radius; by default half of sigma.")] = None,
    space: Annotated[Space, typer.Option(help="Image that the radius is measured on.")] = "model",
    granularity: Annotated[
        Granularity, typer.Option(help="One certificate for the mean over tokens, or for every token by itself.")
    ] = "image",
    stage: Annotated[Stage, typer.Option(help="Whose output is certified.")] = "encoder",
    centred: Annotated[
        bool, typer.Option("--centred", help="Take the mean feature of a reference set off before comparing.")
    ] = False,
    spectral: Annotated[bool, typer.Option(help="Bound the features' spread too, which certifies more.")] = True,
    min_similarity: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=1.0, help="Stop sampling once this similarity is certified; exit status 1 if it is not."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Write NAME.png and NAME.svg: similarity against radius, and the tokens' similarity over the picture."
        ),
    ] = None,
    receipt: Annotated[
        Path | None, typer.Option(dir_okay=False, writable=True, help="Write a receipt that `verify` checks.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Sign the receipt with this Ed25519 private key (PEM).")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    max_pixels: MaxPixelsOption = DEFAULT_MAX_PIXELS,
    as_json: JsonOption = False,
) -> None:
    """Certify one image: how far its features can be moved by an attack, and with what confidence."""
    from fs_runtime.engine import MAX_CONFIDENCE, CertificateTerms, SmoothingRequest
    from fs_runtime.loading.engine import EngineOptions, load_engine
    from fs_runtime.options import MAX_RADIUS, CertificateQuery, radius_for, sigma_value
    from fs_runtime.preprocessing.pictures import read_picture
    from fs_runtime.receipts.document import ReceiptImage
    from fs_runtime.receipts.issue import issue_receipt
    from fs_runtime.robustness import Fingerprints
    from fs_runtime.robustness import certify as certify_result
    from fs_runtime.smoothing.feature_map import FeatureMap

    if not 0 < confidence <= MAX_CONFIDENCE:
        raise typer.BadParameter("confidence lies strictly between 0 and 1, at most 1 - 1e-9; for example 0.999")
    if not (radius is None or radius <= MAX_RADIUS):
        raise typer.BadParameter(f"radius is a number of at most {MAX_RADIUS:g}")
    if sigma is not None:
        try:
            sigma_value(sigma)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    if plot is not None:
        check_plots()
        if not plot.parent.is_dir():
            raise typer.BadParameter(f"the folder {plot.parent} does not exist", param_hint="--plot")
        if sigma == 0:
            raise typer.BadParameter("without noise there is nothing to plot: leave --plot or --sigma 0 out")
    try:
        pixels = read_picture(image)
    except OSError:
        raise typer.BadParameter(f"{image} is not a picture that can be read") from None
    detailed = plot is not None or as_json
    signing_key = signing_key_of(receipt, key)
    engine = load_engine(
        checkpoint_of(model),
        EngineOptions(
            psm=psm, feature_statistics=feature_statistics, device=device, dtype=dtype, encoder_max_pixels=max_pixels
        ),
    )
    sigma = engine.smoother.sigma_for(sigma)
    query = CertificateQuery(radius_for(sigma, radius), space, min_similarity, curve=detailed)
    feature_map = FeatureMap(stage, centred)
    terms = CertificateTerms(sigma, confidence, granularity, feature_map, spectral=spectral, token_map=detailed)
    request = SmoothingRequest(terms, samples if sigma > 0 else 1, until=query)
    statistics = engine.smoother.statistics
    try:
        if centred and statistics is None:
            raise typer.BadParameter("this model has no feature statistics to centre with; leave --centred out")
        result = engine.submit(request, pixels).result()
    finally:
        engine.close()
    floor = statistics.floor_at(feature_map, sigma) if statistics else None
    fingerprints = Fingerprints.of(engine.smoother, feature_map)
    certificate = certify_result(result, query, fingerprints, floor, engine.smoother.psm)
    if receipt is not None:
        issued = issue_receipt(engine, ReceiptImage.of(pixels), query, result, certificate, key=signing_key)
        receipt.write_text(issued.to_json(), encoding="utf-8")
    if plot is not None:
        from fs_runtime.cli.certificate_plot import plot_certificate

        x = engine.encoder.prepare(pixels).pixels
        for path in plot_certificate(certificate, x.numpy() if x.ndim == 3 else None, plot):
            Console(stderr=True).print(f"wrote {path}")
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(certificate), indent=2))
    else:
        _print(certificate, image.name, pixels.shape[0] * pixels.shape[1], min_similarity)
    raise typer.Exit(1 if certificate.satisfied is False else 0)


def _print(certificate: ImageRobustness, name: str, pixels: int, min_similarity: float | None) -> None:
    from fs_runtime.certificate.bounds import BOUNDS  # imported here, since it loads scipy and help should be quick

    console = Console()
    what = "the mean over tokens" if certificate.granularity == "image" else "the worst token"
    stage = f"the {certificate.stage}'s features{', centred' if certificate.centred else ''}"
    facts = Table(title=f"{name}: {what} of {stage}", show_header=False)
    facts.add_row("noise level σ", f"{certificate.sigma:g}")
    if certificate.psm is not None:
        range_ = f"σ from {certificate.psm.sigma_low:g} to {certificate.psm.sigma_high:g}"
        note = "" if certificate.psm.sigma_in_range else f"; trained for {range_}, not for this one"
        facts.add_row("purifier", f"{certificate.psm.name}{note}")
    facts.add_row("samples", str(certificate.samples))
    facts.add_row("confidence", percent(certificate.confidence))
    facts.add_row("ρ, lower bound", _certified(certificate.norm.lower))
    facts.add_row("ρ, estimate (not certified)", _number(certificate.norm.estimate))
    if certificate.spread is not None:
        spread = certificate.spread
        facts.add_row("variance across / along, upper bounds", f"{at_most(spread.across)} / {at_most(spread.along)}")
    if (fidelity := certificate.fidelity) is not None:
        facts.add_row("fidelity: similarity to the picture without noise", f"{fidelity.served:.4f}")
        facts.add_row("fidelity of g, lower bound", "none" if fidelity.lower is None else at_least(fidelity.lower))
    asked = certificate.radius
    facts.add_row("ℓ2 radius asked (model / client)", f"{at_least(asked.model)} / {at_least(asked.client)}")
    facts.add_row("the latter is, for example", change_in_words(asked.client, pixels))
    if certificate.floor is not None:
        facts.add_row(
            "floor: similarity of different images", f"{certificate.floor.mean:.4f} (95%: {certificate.floor.high:.4f})"
        )
    if min_similarity is not None:
        endings = {
            "reached": "sampling ended there",
            "votes": "sampling ended with the vote on the answer",
            "out_of_reach": "sampling ended early, since it will not be reached with the samples allowed",
            "samples": "all samples were used",
        }
        verdict = "reached" if certificate.satisfied else "NOT reached"
        facts.add_row(f"asked similarity {min_similarity:g}", f"{verdict}; {endings[certificate.ended]}")
    console.print(facts)
    bounds = Table("cosine similarity at that radius", "certified", "estimate (not certified)")
    for title, field in [("best of these", "best"), *((kind.label, kind.name) for kind in BOUNDS)]:
        certified, estimate = getattr(certificate.smoothed, field), getattr(certificate.estimate, field)
        if field != "spectral" or certificate.spread is not None:
            bounds.add_row(title, _certified(certified), _number(estimate))
    served = f"of the means that are served, with {percent(certificate.served.confidence)} confidence"
    bounds.add_row(served, _certified(certificate.served.best), "")
    console.print(bounds)
    half = certificate.certified_radius[0]
    radii = Table(f"radius for similarity {half.similarity:g}", "model", "client")
    for title, radius in (("best", half.best), ("tight", half.tight), ("FCSB", half.fcsb)):
        radii.add_row(title, at_least(radius.model), at_least(radius.client))
    console.print(radii)


def _certified(bound: float | None) -> str:
    return "none" if bound is None else at_least(bound)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def signing_key_of(receipt: Path | None, key: Path | None) -> SigningKey | None:
    """The key of the options ``--receipt`` and ``--key``; read first, so that a wrong key fails before any work.

    Raises:
        typer.BadParameter: The key cannot be read, there is no receipt to sign, or the receipt's folder does not exist.
    """
    if receipt is not None and not receipt.parent.is_dir():
        raise typer.BadParameter(f"the folder {receipt.parent} does not exist", param_hint="--receipt")
    if key is None:
        return None
    if receipt is None:
        raise typer.BadParameter("--key signs a receipt; say with --receipt where to write it")
    try:
        return read_signing_key(key)
    except ReceiptKeyError as error:
        raise typer.BadParameter(str(error), param_hint="--key") from None
