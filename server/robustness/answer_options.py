"""The object ``robustness.answer`` of a request: what is to be certified of the answer."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from fs_runtime.options import MAX_RADIUS, Space
from server.settings.certificate import Action

# What the certified radius, or whether it reaches the asked one, depends on beside the images.
_PARAMETERS = frozenset({"samples", "radius", "space", "choices", "pattern", "fields", "adaptive"})


class AnswerOptions(BaseModel):
    """What the caller may ask of a certified answer. All fields but ``certify`` have defaults."""

    model_config = ConfigDict(extra="forbid", strict=True)

    certify: bool = Field(description="Whether the answer is certified, by a vote of the answers to noisy copies.")
    samples: int | None = Field(
        None, ge=1, strict=True, description="Noisy copies that are asked about, at most; 8 of them choose the answer."
    )
    radius: float | None = Field(
        None,
        gt=0,
        le=MAX_RADIUS,
        strict=True,
        allow_inf_nan=False,
        description="l2 size of a change of the images, all together, that must not turn the vote; by default half "
        "of sigma.",
    )
    space: Space = Field(
        "model", description="Whether the radius is measured on the encoder's images or on the images as sent."
    )
    choices: list[str] | None = Field(None, description="The answer must be one of these texts, at least two.")
    pattern: str | None = Field(
        None,
        description="Regular expression (RE2) whose first group, or match, is what counts of the answer.",
    )
    fields: list[Annotated[str, Field(max_length=1000)]] | None = Field(
        None,
        description="JSON pointers into a structured answer, each certified by itself; needs a response_format with a "
        "JSON schema.",
    )
    adaptive: bool | None = Field(
        None,
        description="Ask about no more copies once the radius is certified, or will not be; by default where the "
        "request or the server names a radius.",
    )
    on_failure: Action | None = Field(
        None,
        description="Where the answer is not certified at the radius: return it and say so (flag), answer without the "
        "images (withhold), or 422 (reject).",
    )
    on_undecided: Action | None = Field(
        None,
        description="The same where the votes would reach the radius with more copies; by default as on_failure.",
    )

    estimate: bool = Field(
        False,
        description="Say what the certified answer would cost, and answer nothing: no copy is drawn, no vote taken.",
    )

    @property
    def own_parameters(self) -> bool:
        """Whether the request itself chose what is voted on, how often, or which radius is to be reached."""
        return any(getattr(self, name) is not None for name in _PARAMETERS & self.model_fields_set)
