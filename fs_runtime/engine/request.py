"""What is asked of the engine for one image, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from fs_runtime.certificate import Spread
from fs_runtime.options import CertificateQuery, Granularity, sigma_value
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES, FeatureMap

Ending = Literal["samples", "reached", "out_of_reach"]
CacheOutcome = Literal["hit", "extended", "miss"]
Pixels = NDArray[np.uint8]

MAX_CONFIDENCE = 1 - 1e-9  # beyond it 1 - α, divided over tokens, is no longer exact in double precision


@dataclass(frozen=True, slots=True)
class ConfidenceSplit:
    """How α is split over the statements that a certificate rests on.

    Attributes:
        norm: Share of the lower bound of ρ; with token granularity of all tokens together.
        spread: Share of the upper bounds of the spread; 0 if they are not used.
    """

    norm: float
    spread: float


@dataclass(frozen=True, slots=True)
class SmoothingRequest:
    """What is asked for one image.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB, or a function that gives it: it is called on a thread, and only if the cache
            does not have what is asked. None once the engine has prepared the image for the encoder.
        sigma: Standard deviation σ of the noise, in pixels of [0, 1]; 0 turns smoothing off.
        samples: Noise samples to draw, at most. Where the cache holds more, all of them count.
        confidence: 1 - α of the certificate, over the server's own draws.
        granularity: Whether one certificate speaks of all tokens together or one of each.
        seed: Of the draws; None takes a fresh one from the operating system. A fixed seed goes past the cache.
        feature_map: Which f is certified.
        spectral: Whether to bound the features' spread too, which takes half of α; ``image`` granularity only.
        token_map: Whether to bound ρ of every token too, with an α of its own.
        until: Similarity and radius whose certificate ends the sampling early, as does the insight that it will not be
            reached; None draws all samples.
        tenant: Who asks: tenants share the device fairly, and never each other's cached results.
        image_id: What the cache knows the image by, the same only for the same pixels; None takes their digest.
        timeout: Seconds from now within which the result is of use; None for any time.
        use_cache: Whether the result may come from the cache and go into it.
    """

    image: Pixels | Callable[[], Pixels] | None
    sigma: float
    samples: int
    confidence: float
    granularity: Granularity = "image"
    seed: int | None = None
    feature_map: FeatureMap = ENCODER_FEATURES
    spectral: bool = False
    token_map: bool = False
    until: CertificateQuery | None = None
    tenant: str = ""
    image_id: str | None = None
    timeout: float | None = None
    use_cache: bool = True

    @property
    def alphas(self) -> ConfidenceSplit:
        """How α = 1 - confidence is split over the statements."""
        alpha = 1 - self.confidence
        return ConfidenceSplit(alpha / 2, alpha / 2) if self.bounds_spread else ConfidenceSplit(alpha, 0.0)

    @property
    def bounds_spread(self) -> bool:
        """Whether the features' spread is bounded."""
        return self.spectral and self.granularity == "image" and self.sigma > 0

    @property
    def token_confidence(self) -> float | None:
        """Confidence of the statements about all tokens at once; None if there are none."""
        return self.confidence if self.token_map or self.granularity == "token" else None

    def pixels(self) -> Pixels:
        """``(H, W, 3)`` uint8 RGB; ValueError if they are gone."""
        if self.image is None:
            raise ValueError("the pixels are gone: the image is prepared")
        return self.image() if callable(self.image) else self.image

    def without_pixels(self) -> Self:
        """What is left to ask of a prepared image. Its pixels can have a hundred times the bytes of what is prepared,
        and nobody looks at them again while it waits."""
        return replace(self, image=None)

    def check(self) -> None:
        """Refuses what cannot be computed.

        Raises:
            ValueError: A value is out of range.
        """
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        if not 0 < self.confidence <= MAX_CONFIDENCE:
            raise ValueError(f"confidence must lie in (0, 1 - 1e-9], for example 0.999; got {self.confidence}")
        sigma_value(self.sigma)


@dataclass(frozen=True, slots=True)
class SmoothingResult:
    """What the smoothing pass found for one image; T tokens. Results from the cache share their arrays.

    Attributes:
        payload: Arrays for the language model, ``image_embeds`` among them.
        sigma: As asked.
        samples: Samples drawn.
        max_samples: Samples that would have been drawn at most.
        planned: Samples that the first request for these draws would have drawn at most. It was fixed before any
            of them was made, while ``max_samples`` of a later request may have been chosen in the light of them.
        ended: Why no more were drawn.
        confidence: 1 - α, as asked.
        alphas: How α was split.
        granularity: As asked.
        feature_map: As asked.
        norm_lower: Lower bound of ρ with that confidence: a float, or ``(T,)``, all tokens at once.
        norm_estimate: Plug-in estimate of ρ without confidence, of the same shape; None if it cannot be given.
        token_norm_lower: ``(T,)`` lower bounds of all tokens' ρ at once, with an α of their own; None if not asked for.
        spread: Upper bounds of the features' variances across and along g; None if they were not asked for.
        spread_estimate: Largest eigenvalue of the samples' covariance, without confidence; None likewise,
            and where nothing was seen of it.
        spread_samples: Samples whose spread was seen: 0 if it was not asked for, else all but the first, or fewer if
            there was no memory for more.
        spectral_norm: ‖A‖₂ from the client's pixels to the encoder's.
        token_grids: Rows and columns of the rectangles that the tokens fill, one after another.
        seed: Of the draws.
        queue_seconds: Time before the first sample; 0 if all were there.
        smoothing_seconds: Time from the first sample to the last; 0 if all were there.
        cache: ``miss``: nothing was there to go on with; ``hit``: all had been asked for before; ``extended``:
            further ones were added to what was there. None if the cache was not used.
        drawn: Samples drawn for this request, those left out that were there or that others had asked for.
        until: What ended the sampling, or would have; None where nothing but the number of samples could.
    """

    payload: dict[str, NDArray[np.generic]]
    sigma: float
    samples: int
    max_samples: int
    planned: int
    ended: Ending
    confidence: float
    alphas: ConfidenceSplit
    granularity: Granularity
    feature_map: FeatureMap
    norm_lower: float | NDArray[np.float64]
    norm_estimate: float | NDArray[np.float64] | None
    token_norm_lower: NDArray[np.float64] | None
    spread: Spread | None
    spread_estimate: float | None
    spread_samples: int
    spectral_norm: float
    token_grids: tuple[tuple[int, int], ...]
    seed: int
    queue_seconds: float
    smoothing_seconds: float
    cache: CacheOutcome | None = None
    drawn: int = 0
    until: CertificateQuery | None = None
