"""The receipt as a document: its schema, and the bytes of it that are signed."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn, Self

import numpy as np
import rfc8785
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fs_runtime.options import (
    MAX_RADIUS,
    CompileMode,
    Granularity,
    Precision,
    Quantization,
    Space,
    Stage,
    sigma_value,
)
from fs_runtime.preprocessing.pictures import digest

_DIGEST = r"^sha256:[0-9a-f]{64}$"


class ReceiptError(ValueError):
    """A document that is not a receipt, with the field at fault in its message."""


class _ReceiptPart(BaseModel):
    # What was signed and what is read back are the same, field by field: a field has no default, or, if it came later,
    # one that is never written, so that receipts without it keep their bytes.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ReceiptImage(_ReceiptPart):
    """The image that was received, decoded to 8-bit RGB."""

    digest: str = Field(
        pattern=_DIGEST, description="SHA-256 of size and pixels (fs_runtime.preprocessing.pictures.digest)."
    )
    height: int = Field(ge=1)
    width: int = Field(ge=1)

    @classmethod
    def of(cls, pixels: NDArray[np.uint8]) -> Self:
        """What a receipt says of ``(H, W, 3)`` uint8 RGB."""
        return cls(digest=digest(pixels), height=pixels.shape[0], width=pixels.shape[1])


class ReceiptPreprocessing(_ReceiptPart):
    """The way from that image to the one that the encoder reads."""

    spectral_norm: float = Field(ge=0, description="‖A‖₂ from the client's pixels to the encoder's.")
    steps: dict[str, Any] = Field(description="The encoder's own statement; empty where it makes none.")


class ReceiptUntil(_ReceiptPart):
    """The similarity that ends the sampling early: once it is certified, or most likely will not be by ``max_samples``.

    It need not be the one that the certificate was asked about.
    """

    radius: float = Field(ge=0, le=MAX_RADIUS)
    space: Space
    min_similarity: float = Field(gt=0, le=1)


class ReceiptDraws(_ReceiptPart):
    """The noise samples. The seed is a string: 64 bits do not fit into the numbers of JSON, which are exact to 53."""

    sigma: Annotated[float, AfterValidator(sigma_value)] = Field(description="σ in pixels of [0, 1].")
    seed: str = Field(pattern=r"^(0|[1-9][0-9]{0,19})$", description="Unsigned 64-bit integer, in decimal.")
    noise_version: int | None = Field(
        default=None,
        ge=2,
        exclude_if=lambda version: version is None,
        description="Of the way from the seed to the draws (fs_runtime.smoothing.noise); left out for the first.",
    )
    samples: int = Field(ge=1, description="Samples drawn.")
    max_samples: int = Field(ge=1, description="Samples that would have been drawn at most.")
    planned: int = Field(ge=1, description="The same when the first of these draws was made; others may have added.")
    confidence: float = Field(gt=0, le=1 - 1e-9, description="1 - α.")
    granularity: Granularity
    stage: Stage
    centred: bool
    spectral: bool
    spread_samples: int | None = Field(
        default=None,
        ge=0,
        exclude_if=lambda count: count is None,
        description="Samples whose spread was seen; left out where those are all but the first, as they should be.",
    )
    token_map: bool
    until: ReceiptUntil | None = Field(
        default=None,
        exclude_if=lambda until: until is None,
        description="What could end the sampling early; left out where nothing could.",
    )

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        if int(self.seed) >= 2**64:
            raise ValueError("seed must be below 2**64")
        if self.samples > self.max_samples:
            raise ValueError(f"samples {self.samples} is above max_samples {self.max_samples}")
        if self.spread_samples is not None and not (self.spectral and self.spread_samples < self.samples - 1):
            raise ValueError("spread_samples is for a spread that fewer samples were seen of than there are")
        if self.until is not None and self.sigma == 0:
            raise ValueError("until is for more than one sample, and without noise one is all")
        return self


class ReceiptQuery(_ReceiptPart):
    """What the certificate was asked about (fs_runtime.options.CertificateQuery)."""

    radius: float = Field(ge=0, le=MAX_RADIUS)
    space: Space
    min_similarity: float | None = Field(ge=0, le=1)
    curve: bool


class ReceiptArithmetic(_ReceiptPart):
    """What computed it. CPU and CUDA draw different noise from one seed; the rest moves numbers within a tolerance."""

    device: Literal["cpu", "cuda"]
    device_name: str
    dtype: Precision
    batch_size: int = Field(ge=1, description="Most samples in one batch.")
    compiled: CompileMode | None = Field(
        default=None,
        exclude_if=lambda mode: mode is None,
        description="Mode of torch.compile that made the networks; left out where they ran as they are.",
    )
    quantization: Quantization | None = Field(
        default=None,
        exclude_if=lambda name: name is None,
        description="Format of the products in the encoder's linear layers; left out where it is that of dtype.",
    )


class ReceiptFingerprints(_ReceiptPart):
    """Digests of the weights; null for a part that was not there."""

    model: str = Field(pattern=_DIGEST)
    purifier: str | None = Field(pattern=_DIGEST)
    mapper: str | None = Field(pattern=_DIGEST)
    centre: str | None = Field(pattern=_DIGEST)


class ReceiptSigner(_ReceiptPart):
    """Who signed: an Ed25519 key."""

    key_id: str = Field(pattern=_DIGEST, description="SHA-256 of the raw public key.")
    public_key: str = Field(description="The raw public key, 32 bytes in base64.")


class Receipt(_ReceiptPart):
    """One certificate with all that is needed to compute it again, given the image and the weights.

    Everything but ``signature`` is signed, as canonical JSON (RFC 8785), so that neither the order of the fields nor
    white space nor the spelling of a number matters.

    What a version means: a field that a receipt of this version once had is never dropped and keeps its meaning. One
    that is added later is optional here and is left out where it has nothing to say (in ``certificate``: it is listed
    in ``comparison.LATER_FIELDS``), so that older receipts keep their bytes and verify. Whatever else changes takes a
    new version.
    """

    object: Literal["receipt"]
    version: Literal[1]
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="UTC.")
    request_id: str | None
    image: ReceiptImage
    preprocessing: ReceiptPreprocessing
    draws: ReceiptDraws
    query: ReceiptQuery
    arithmetic: ReceiptArithmetic
    fingerprints: ReceiptFingerprints
    versions: dict[str, str]
    certificate: dict[str, Any] = Field(description="The robustness entry of the image, whole.")
    signer: ReceiptSigner | None
    signature: str | None = Field(description="Ed25519 signature in base64.")

    @model_validator(mode="after")
    def _can_be_signed(self) -> Self:
        if (self.signer is None) != (self.signature is None):
            raise ValueError("signer and signature come together or not at all")
        self.signed_bytes()
        return self

    def signed_bytes(self) -> bytes:
        """The canonical JSON (RFC 8785) of everything but the signature, in UTF-8.

        Raises:
            ValueError: A number has no exact form in JSON: an integer of more than 53 bits, NaN or infinite.
        """
        return rfc8785.dumps(self.model_dump(exclude={"signature"}))  # mode="json" would make a null of infinity

    def to_json(self) -> str:
        """The document as people read it."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def parse_receipt(text: str | bytes) -> Receipt:
    """Reads a receipt.

    Raises:
        ReceiptError: It is not valid JSON, repeats a field, or a field is missing, unknown or out of range.
    """
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ReceiptError(f"the receipt is not valid JSON: {error}") from None
    if not isinstance(data, dict) or data.get("object") != "receipt":
        raise ReceiptError('this is not a receipt: it has no "object": "receipt"')
    if data.get("version") != 1:
        raise ReceiptError(f"version {data.get('version')!r} of the receipt is not known here; update fs-serve")
    try:
        return Receipt.model_validate(data)
    except (ValidationError, RecursionError) as error:
        raise ReceiptError(_first_problem(error)) from None


def _first_problem(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "the receipt is nested too deeply"
    problem = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"the receipt's {path} is not known here; if the receipt is of a later fs-serve, update this one"
    return f"the receipt's {path or 'document'} is wrong: {problem['msg'].removeprefix('Value error, ')}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers may take different ones of two fields of one name, so neither is taken."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a field occurs twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
