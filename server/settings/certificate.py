"""Settings of smoothing, certificate and policy, which models and tenants may override."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fs_runtime.options import MAX_RADIUS, Granularity, Space, Stage, sigma_value
from server.settings.fields import CommaList

Action = Literal["flag", "withhold", "reject"]
"""What happens when an image does not meet a requirement."""
FidelityAction = Literal["flag", "withhold"]
"""What happens when smoothing leaves too little of an image: another sigma may show it, so it is not rejected."""


class CertificateSettings(BaseModel):
    """Defaults and limits of the certificates that requests get."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    sigma: Annotated[float, AfterValidator(sigma_value)] | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="Noise level when the request does not say, in pixels of [0, 1]; by default the one that the "
        "feature statistics allow, else that of the purifier and mapper, and 0.05 without them.",
    )
    max_sigma: float = Field(
        1.0,
        ge=0,
        allow_inf_nan=False,
        description="Largest noise level a request may ask for; a model whose default is larger is refused at start.",
    )
    samples: int = Field(256, ge=1, description="Noise samples for each image when the request does not say.")
    max_samples: int = Field(4096, ge=1, description="Most noise samples a request may ask for: they are what costs.")
    confidence: float = Field(
        0.999,
        ge=1e-9,
        le=1 - 1e-9,
        description="Probability that a certificate holds, over the server's own draws; from 1e-9 to 1 - 1e-9.",
    )
    radius: float | None = Field(
        None,
        ge=0,
        le=MAX_RADIUS,
        description="l2 radius when the request does not say; by default half of sigma.",
    )
    granularity: Granularity = Field(
        "image", description="Whether the mean over tokens is certified or every token, when the request does not say."
    )
    stage: Stage = Field("encoder", description="Whose output is certified when the request does not say.")
    centred: bool = Field(
        False,
        description="Take the mean feature of a reference set off first when the request does not say; the model "
        "must have feature statistics.",
    )
    spectral: bool = Field(
        True,
        description="Bound the features' spread too: it certifies far more at the same samples, for a little time.",
    )
    adaptive: bool = Field(
        False,
        description="Stop drawing samples once min_similarity is certified, or will not be: it saves encoder passes.",
    )
    receipts: bool = Field(
        False, description="Add a receipt to each image's certificate when the request does not say."
    )

    min_similarity: float | None = Field(
        None, ge=0, le=1, description="Certified similarity that every image must reach; by default none."
    )
    min_similarity_radius: float | None = Field(
        None,
        ge=0,
        le=MAX_RADIUS,
        description="l2 radius at which min_similarity must hold, whatever radius and sigma a request asks for; by "
        "default the one of a request that says nothing.",
    )
    min_similarity_space: Space = Field(
        "model", description="Whether min_similarity_radius is measured on the encoder's image or on the one sent."
    )
    on_failure: Action = Field(
        "flag",
        description="Below min_similarity: answer and say so (flag), answer without the image (withhold), or 422 "
        "(reject).",
    )
    on_undecided: Action | None = Field(
        None,
        description="The same where the estimate reaches min_similarity but the samples ended before it was "
        "certified; by default as on_failure.",
    )
    min_fidelity: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Smallest cosine similarity, by its certified lower bound, of the smoothed features with those of "
        "the picture as sent, without noise: what smoothing must leave of every image. By default any is enough.",
    )
    on_low_fidelity: FidelityAction = Field(
        "flag",
        description="Below min_fidelity: answer and say so (flag), or answer without the image (withhold).",
    )
    answer_samples: int = Field(
        128,
        ge=1,
        description="Noisy copies that are asked about for a certified answer when the request does not say; no more "
        "than max_samples.",
    )
    min_answer_radius: float | None = Field(
        None,
        gt=0,
        le=MAX_RADIUS,
        description="l2 radius, on the encoder's images, within which every answer about images must be certified: "
        "answers are then voted on, whether a request asks for it or not. By default none.",
    )
    on_answer_failure: Action = Field(
        "flag",
        description="Where an answer is not certified at min_answer_radius: return it and say so (flag), answer "
        "without the images (withhold), or 422 (reject).",
    )
    on_answer_undecided: Action | None = Field(
        None,
        description="The same where the votes would reach it with more copies; by default as on_answer_failure.",
    )
    answer_functions: CommaList[str] = Field(
        ["text"],
        description="What may be voted on where min_answer_radius binds, separated by commas: text (the whole answer), "
        "choices, fields, or pattern: before one regular expression. A function that hardly depends on the answer "
        "would be certified at any radius.",
    )
    policy_binds: bool = Field(
        True,
        description="min_similarity, its radius, on_failure, on_undecided, min_fidelity, on_low_fidelity, confidence, "
        "stage, centred and granularity bind: requests may add to them, not take away. So do min_answer_radius, "
        "on_answer_failure, on_answer_undecided, answer_functions and, beside them, confidence and sigma. Without: "
        "they are defaults that a request may override.",
    )

    @property
    def answers_bind(self) -> bool:
        """Whether there is a radius that requests cannot do without."""
        return self.policy_binds and self.min_answer_radius is not None

    def contradiction(self) -> str | None:
        """Describes a default that exceeds its limit, or that nothing can reach; None if there is none."""
        if self.sigma is not None and self.sigma > self.max_sigma:
            return f"sigma {self.sigma} is above max_sigma {self.max_sigma}"
        if self.samples > self.max_samples:
            return f"samples {self.samples} is above max_samples {self.max_samples}"
        for function in self.answer_functions:
            if function not in ("text", "choices", "fields") and not function.startswith("pattern:"):
                return f"answer_functions: {function!r} is none of text, choices, fields and pattern:REGEX"
        if self.min_fidelity is not None:
            most = _largest_fidelity(self.samples, self.confidence)
            if self.min_fidelity > most:
                return (
                    f"min_fidelity {self.min_fidelity:g} is above {most:.4f}, the most that {self.samples} samples can "
                    f"certify with confidence {self.confidence:g}; set more samples, or a lower one"
                )
        return None


def _largest_fidelity(samples: int, confidence: float) -> float:
    """The certified fidelity of a picture that noise does not change at all."""
    import numpy as np

    from fs_runtime.certificate import NormConfidenceSequence  # loads scipy, which few settings need

    sequence = NormConfidenceSequence(confidence)
    sequence.update(np.ones(samples))
    return float(sequence.lower)
