"""Schemas of requests and responses. Chat requests are OpenAI's with an additional object, ``robustness``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from fs_runtime.psm import PsmFacts
from server.robustness.answer import Robustness
from server.robustness.options import OptionsOrNull, RobustnessOptions

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
TEXT_PARTS = frozenset({"text", "refusal", "thinking"})
TEXT_PART_FIELDS = TEXT_PARTS | {"type", "annotations", "cache_control"}


def _stop_texts(stop: str | list[str]) -> str | list[str]:
    """Limits the stop texts, since each step of an answer is searched for all of them."""
    texts = [stop] if isinstance(stop, str) else stop
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_CHARACTERS for text in texts):
        raise ValueError(f"must be at most {MAX_STOPS} texts of at most {MAX_STOP_CHARACTERS} characters each")
    return stop


class ImageUrl(BaseModel):
    """URL of an image."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="data:image/png;base64,…")
    detail: Literal["auto", "low", "high"] | None = Field(None, description="Ignored.")


def _url_object(value: object) -> object:
    """Explains the most common mistake: a bare URL instead of the object."""
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
        None,
        description="vLLM's option; separates the caller's own users from each other. Tenants are always separate.",
    )
    robustness: OptionsOrNull = Field(default_factory=RobustnessOptions)


class CertifyRequest(BaseModel):
    """One image to certify, without a language model."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Name of the model; may be left out where there is one alone.")
    image: str = Field(description="data:image/png;base64,…")
    robustness: OptionsOrNull = Field(default_factory=RobustnessOptions)


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
    fingerprint: str = Field(description="Digest of the certified vision part.")
    family: str
    psm: PsmFacts | None = Field(description="Purifier before it and mapper after it; null without them.")


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
