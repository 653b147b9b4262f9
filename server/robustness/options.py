"""The object ``robustness`` of a request."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from fs_runtime.engine import MAX_CONFIDENCE
from fs_runtime.options import MAX_RADIUS, Granularity, Space, Stage, sigma_value
from server.robustness.answer_options import AnswerOptions
from server.settings.certificate import Action, FidelityAction

# What the certified similarity of an image depends on beside the image.
_PARAMETERS = frozenset(
    {"sigma", "samples", "confidence", "radius", "space", "granularity", "spectral", "stage", "centred", "adaptive"}
)


class RobustnessOptions(BaseModel):
    """What the caller may ask of smoothing and certificate. Every field has an operator's default."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sigma: Annotated[float, AfterValidator(sigma_value)] | None = Field(
        None,
        ge=0,
        strict=True,
        allow_inf_nan=False,
        description="Noise level in pixels of [0, 1], used to four decimals; 0 is off.",
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
    space: Space = Field(
        "model", description="Whether the radius is measured on the encoder's image or on the image as sent."
    )
    granularity: Granularity | None = Field(
        None, description="One certificate for the mean over tokens, or for every token by itself."
    )
    spectral: bool | None = Field(
        None, description="Bound the features' spread too, which certifies more; with image granularity only."
    )
    stage: Stage | None = Field(
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
    min_fidelity: float | None = Field(
        None,
        gt=0,
        le=1,
        strict=True,
        description="What smoothing must leave of every image: the smallest cosine similarity, by its certified lower "
        "bound, with the features of the picture as sent, without noise.",
    )
    on_low_fidelity: FidelityAction | None = Field(
        None, description="Below min_fidelity: answer and say so (flag), or answer without the image (withhold)."
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

    answer: AnswerOptions | None = Field(
        None, description="Certify the answer itself, in chat requests: which answer noisy copies of the images get."
    )

    @property
    def own_parameters(self) -> bool:
        """Whether the request itself chose anything that the size of the certified similarity depends on."""
        return bool(self.model_fields_set & _PARAMETERS)


# null is as good as absent, as for every field of OpenAI's
OptionsOrNull = Annotated[RobustnessOptions, BeforeValidator(lambda value: {} if value is None else value)]
