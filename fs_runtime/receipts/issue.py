"""From the outcome of the smoothing pass to a receipt."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from fs_runtime.engine import SmoothingEngine, SmoothingResult
from fs_runtime.options import CertificateQuery
from fs_runtime.receipts.document import (
    Receipt,
    ReceiptArithmetic,
    ReceiptDraws,
    ReceiptFingerprints,
    ReceiptImage,
    ReceiptPreprocessing,
    ReceiptQuery,
    ReceiptUntil,
)
from fs_runtime.receipts.signing import SigningKey
from fs_runtime.robustness import ImageRobustness
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.system.provenance import device_name, library_versions


def issue_receipt(
    engine: SmoothingEngine,
    image: ReceiptImage,
    query: CertificateQuery,
    result: SmoothingResult,
    certificate: ImageRobustness,
    *,
    request_id: str | None = None,
    key: SigningKey | None = None,
) -> Receipt:
    """Writes down what a certificate was made from.

    Args:
        engine: The one that drew the samples.
        image: What was given to the engine.
        query: What the certificate was asked about.
        result: Of the engine.
        certificate: Made from ``result`` and ``query``.
        request_id: Of the request that is answered.
        key: Signs the receipt; None leaves it unsigned.

    Returns:
        The receipt. It holds the seed: nobody may have it before the draws are done.
    """
    terms = result.terms
    receipt = Receipt(
        object="receipt",
        version=1,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        request_id=request_id,
        image=image,
        preprocessing=ReceiptPreprocessing(spectral_norm=result.spectral_norm, steps=engine.encoder.preprocessing),
        draws=ReceiptDraws(
            sigma=terms.sigma,
            seed=str(result.seed),
            noise_version=None if engine.smoother.noise_version == 1 else engine.smoother.noise_version,
            samples=result.samples,
            max_samples=result.max_samples,
            planned=result.planned,
            confidence=terms.confidence,
            granularity=terms.granularity,
            stage=terms.feature_map.stage,
            centred=terms.feature_map.centred,
            spectral=result.spread is not None,
            spread_samples=_spread_samples(result),
            token_map=result.token_norm_lower is not None,
            until=_until(result),
        ),
        query=ReceiptQuery(
            radius=query.radius, space=query.space, min_similarity=query.min_similarity, curve=query.curve
        ),
        arithmetic=arithmetic_of(engine.smoother, engine.batch_size),
        fingerprints=ReceiptFingerprints(**dataclasses.asdict(certificate.fingerprints)),
        versions=library_versions(),
        certificate=dataclasses.asdict(certificate),
        signer=None,
        signature=None,
    )
    return key.sign(receipt) if key else receipt


def _spread_samples(result: SmoothingResult) -> int | None:
    """The samples whose spread was seen, where a lack of memory made them fewer than there are."""
    all_seen = result.spread is None or result.spread_samples == result.samples - 1
    return None if all_seen else result.spread_samples


def _until(result: SmoothingResult) -> ReceiptUntil | None:
    until = result.until
    if until is None or until.min_similarity is None:
        return None
    return ReceiptUntil(radius=until.radius, space=until.space, min_similarity=until.min_similarity)


def arithmetic_of(smoother: Smoother, batch_size: int) -> ReceiptArithmetic:
    """Device, precision and compilation that a smoother computes with."""
    encoder, compiled = smoother.encoder, smoother.compiled
    return ReceiptArithmetic(
        device=encoder.device.type,  # type: ignore[arg-type] # checked by the schema, as is the next but one
        device_name=device_name(encoder.device),
        dtype=str(encoder.dtype).removeprefix("torch."),  # type: ignore[arg-type]
        batch_size=batch_size,
        compiled=None if compiled is None else compiled.mode,
        quantization=encoder.quantization,
    )
