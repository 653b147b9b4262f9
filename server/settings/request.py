"""Settings that a tenant may override: certificates, size limits and rate limits."""

from __future__ import annotations

from pydantic import Field

from server.settings.certificate import CertificateSettings


class RequestSettings(CertificateSettings):
    """Defaults and limits of requests, which the access file can override for each tenant."""

    max_image_bytes: int = Field(20 * 2**20, ge=64, description="Largest encoded image.")
    max_image_pixels: int = Field(
        25_000_000, ge=64, description="Largest image in pixels, checked before it is decoded (decompression bombs)."
    )
    max_images: int = Field(8, ge=1, description="Most images in one request.")
    max_text_characters: int = Field(
        4_194_304,
        ge=1,
        description="Most characters of text in one request, each ligature or the like counted as what it stands for: "
        "more than language models read. It bounds the search for the model's own tokens.",
    )
    max_answer_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of one answer, over all of its n choices; requests that do not say get this many. "
        "By default the language model's context is the limit.",
    )

    requests_per_minute: int | None = Field(
        None, ge=1, description="Requests that a tenant may send in a minute; by default as many as it likes."
    )
    images_per_minute: int | None = Field(None, ge=1, description="Images that a tenant may send in a minute.")
    samples_per_minute: int | None = Field(
        None,
        ge=1,
        description="Noise samples that a tenant may ask for in a minute: the limit that follows what requests cost.",
    )
    votes_per_minute: int | None = Field(
        None,
        ge=1,
        description="Noisy copies that a tenant may have the language model asked about in a minute, for certified "
        "answers: each costs as much as an answer.",
    )
