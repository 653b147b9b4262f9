"""Request and answer bodies. Chat requests extend OpenAI's by one object, ``robustness``; the rest passes through."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from fs_runtime.engine import MAX_CONFIDENCE, CacheOutcome
from fs_runtime.psm import PsmFacts
from fs_runtime.query import MAX_RADIUS, sigma_value
from fs_runtime.receipts import Receipt
from fs_runtime.robustness import ImageRobustness
from server.api.detail import detail_of
from server.policy import Action, Decision, Requirement, Verdict

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
TEXT_PARTS = frozenset({"text", "refusal", "thinking"})
TEXT_PART_FIELDS = TEXT_PARTS | {"type", "annotations", "cache_control"}
# What the certified similarity of an image depends on beside the image.
_PARAMETERS = frozenset(
    {"sigma", "samples", "confidence", "radius", "space", "granularity", "spectral", "stage", "centred", "adaptive"}
)


class RobustnessOptions(BaseModel):
    """What the caller may ask of smoothing and certificate. Every field has an operator's default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sigma: Annotated[float, AfterValidator(sigma_value)] | None = Field(
        None, ge=0, strict=True, allow_inf_nan=False, description="Noise level in pixels of [0, 1]; 0 is off."
    )
    samples: int | None = Field(None, ge=1, strict=True, description="Noise samples for each image.")
    confidence: float | None = Field(
        None,
        ge=1e-9,
        le=MAX_CONFIDENCE,
        strict=True,
        description="Probability that the certificate holds, over the server's draws; from 1e-9 to 1 - 1e-9.",
    )
    radius: float | None = Field(
        None,
        ge=0,
        le=MAX_RADIUS,
        strict=True,
        allow_inf_nan=False,
        description="l2 size of the attack in pixels of [0, 1].",
    )
    space: Literal["model", "client"] = Field(
        "model", description="Whether the radius is measured on the encoder's image or on the image as sent."
    )
    granularity: Literal["image", "token"] | None = Field(
        None, description="One certificate for the mean over tokens, or for every token by itself."
    )
    spectral: bool | None = Field(
        None, description="Bound the features' spread too, which certifies more; with image granularity only."
    )
    stage: Literal["encoder", "projector"] | None = Field(
        None, description="Certify the encoder's output (the paper) or the projector's, which the model reads."
    )
    centred: bool | None = Field(None, description="Take the mean feature of a reference set off before comparing.")
    curve: bool = Field(False, description="Give the bounds over a range of radii.")
    token_map: bool = Field(False, description="Give the certified similarity of every token.")
    min_similarity: float | None = Field(
        None, ge=0, le=1, strict=True, description="Certified similarity that every image must reach."
    )
    on_failure: Action | None = Field(
        None,
        description="Below min_similarity: answer and say so (flag), answer without the image (withhold), or 422 "
        "(reject).",
    )
    on_undecided: Action | None = Field(
        None,
        description="The same where the estimate reaches min_similarity but the samples ended first; by default as "
        "on_failure.",
    )
    adaptive: bool | None = Field(
        None, description="Stop sampling once min_similarity is certified, or will not be; samples is then the most."
    )
    receipt: bool | None = Field(
        None, description="Add a receipt to each image: all that is needed to compute its certificate again."
    )
    cache: bool = Field(
        True, description="Whether draws for the same image may be shared with other requests; false draws anew."
    )
    seed: int | None = Field(
        None, ge=0, lt=2**64, strict=True, description="Fixes the noise; only where the operator allows it."
    )

    @property
    def own_parameters(self) -> bool:
        """Whether the request itself chose anything that the size of the certified similarity depends on."""
        return bool(self.model_fields_set & _PARAMETERS)


# null is as good as absent, as for every field of OpenAI's
OptionsOrNull = Annotated[RobustnessOptions, BeforeValidator(lambda value: {} if value is None else value)]


def _stop_texts(stop: str | list[str]) -> str | list[str]:
    """Every step of an answer is searched for all of them, so there must be few."""
    texts = [stop] if isinstance(stop, str) else stop
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        raise ValueError(f"must be at most {MAX_STOPS} texts of at most {MAX_STOP_CHARACTERS} characters each")
    return stop


class ImageUrl(BaseModel):
    """Where an image is."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="data:image/png;base64,…")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Without effect.")


def _url_object(value: object) -> object:
    """The commonest mistake is to give the URL by itself."""
    if isinstance(value, str):
        raise ValueError('must be an object: {"url": "data:image/png;base64,…"}')
    return value


class ContentPart(BaseModel):
    """One part of a message: text, or an image."""

    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None
    image_url: Annotated[ImageUrl | None, BeforeValidator(_url_object)] = None


class ChatMessage(BaseModel):
    """One message of the conversation."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, StringConstraints(min_length=1)]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None


class StreamOptions(BaseModel):
    """OpenAI's options of a stream."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = Field(None, strict=True)


class ChatCompletionRequest(BaseModel):
    """OpenAI's chat completion request, with ``robustness``. Other fields go to the language model untouched."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(description="Name of a model that /v1/models lists.")
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    stream: bool | None = Field(None, strict=True)
    stream_options: StreamOptions | None = None
    stop: Annotated[str | Annotated[list[str], Field(fail_fast=True)], AfterValidator(_stop_texts)] | None = Field(
        None,
        description=f"Texts that end the answer: at most {MAX_STOPS} of at most {MAX_STOP_CHARACTERS} characters.",
    )
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        None, description="vLLM's; parts the caller's own users from each other. Tenants are always apart."
    )
    robustness: OptionsOrNull = Field(default_factory=RobustnessOptions)


class CertifyRequest(BaseModel):
    """One image to certify, without a language model."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Name of the model; may be left out where there is one alone.")
    image: str = Field(description="data:image/png;base64,…")
    robustness: OptionsOrNull = Field(default_factory=RobustnessOptions)


@dataclass(frozen=True, slots=True)
class Judgement:
    """How one image did at one requirement.

    Attributes:
        verdict: ``met``: certified. ``undecided``: the estimate reaches it, the certificate does not. ``failed``.
        certified: Certified similarity at the requirement's radius; null for none.
        estimate: The same with estimates in place of bounds: not certified.
    """

    verdict: Verdict
    certified: float | None
    estimate: float | None


@dataclass(frozen=True, slots=True)
class ImageEntry(ImageRobustness):
    """The certificate of one image, what the cache did for it, and its receipt if one was asked for.

    Attributes:
        judgements: One for each requirement of the request, in the same order.
        withheld: Whether the language model was given a notice in place of this image.
        spectral_left_out: Whether ``spectral`` had no effect, since the sketch that it takes would be too large.
    """

    cache: CacheOutcome | None = None
    receipt: Receipt | None = None
    judgements: tuple[Judgement, ...] = ()
    withheld: bool = False
    spectral_left_out: bool = False

    @classmethod
    def of(
        cls,
        certificate: ImageRobustness,
        cache: CacheOutcome | None,
        receipt: Receipt | None,
        judgements: tuple[Judgement, ...] = (),
        *,
        withheld: bool = False,
        spectral_left_out: bool = False,
    ) -> ImageEntry:
        """Puts them together."""
        values = {part.name: getattr(certificate, part.name) for part in fields(ImageRobustness)}
        return cls(
            **values,
            cache=cache,
            receipt=receipt,
            judgements=judgements,
            withheld=withheld,
            spectral_left_out=spectral_left_out,
        )


class Robustness(BaseModel):
    """The object that is added to every answer.

    ``certified`` is true when every image has a bound at its radius, false when one has none, and null when there
    was no image, hence nothing to certify.
    """

    certified: bool | None
    satisfied: bool | None = Field(None, description="Whether every image met every requirement; null if none.")
    decision: Decision | None = Field(
        None, description="What followed: pass, flag, withhold or reject; null without image or requirement."
    )
    detail: str
    requirements: list[Requirement] = Field([], description="What every image had to reach.")
    images: list[ImageEntry]

    @classmethod
    def of(
        cls, images: list[ImageEntry], requirements: list[Requirement] | None = None, decision: Decision | None = None
    ) -> Robustness:
        """Sums up the images of one request."""
        detail = detail_of(images)
        if not images:
            return cls(certified=None, detail=detail, images=[])
        verdicts = [judgement.verdict for image in images for judgement in image.judgements]
        return cls(
            certified=all(image.certified for image in images),
            satisfied=all(verdict == "met" for verdict in verdicts) if verdicts else None,
            decision=decision,
            detail=detail,
            requirements=requirements or [],
            images=images,
        )


class CertifyResponse(BaseModel):
    """Answer of ``/v1/certify``."""

    id: str
    object: Literal["certificate"] = "certificate"
    created: int
    model: str
    robustness: Robustness


class Model(BaseModel):
    """One entry of ``/v1/models``."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "fs-serve"
    fingerprint: str = Field(description="Digest of the vision part that is certified.")
    family: str
    psm: PsmFacts | None = Field(description="Purifier and mapper in front of and behind it; null for none.")


class ModelList(BaseModel):
    """Answer of ``/v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class ReceiptKey(BaseModel):
    """Answer of ``/v1/receipt-key``: the public key that receipts are signed with."""

    object: Literal["receipt_key"] = "receipt_key"
    algorithm: Literal["Ed25519"] = "Ed25519"
    key_id: str = Field(description="SHA-256 of the raw public key, as receipts name it.")
    pem: str = Field(description="The public key in PEM, for fs-serve verify --public-key.")


class ErrorDetail(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error answer."""

    error: ErrorDetail
    robustness: dict[str, Any] | None = None
