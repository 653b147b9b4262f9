"""What is asked of the engine for one image, and what it answers: plain values, which other processes may send."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from fs_runtime.certificate import Spread
from fs_runtime.engine.terms import CertificateTerms
from fs_runtime.options import CertificateQuery
from fs_runtime.smoothing.noise import fresh_seed

Ending = Literal["samples", "reached", "out_of_reach", "votes"]
CacheOutcome = Literal["hit", "extended", "miss"]
Pixels = NDArray[np.uint8]
"""``(H, W, 3)`` uint8 RGB."""


@dataclass(frozen=True, slots=True)
class SmoothingRequest:
    """What is asked for one image.

    Attributes:
        terms: What the certificate speaks of.
        samples: Noise samples to draw, at most. Where the cache holds more, all of them count.
        seed: Of the draws; None takes a fresh one from the operating system. A fixed seed goes past the cache.
        until: Similarity and radius whose certificate ends the sampling early, as does the insight that it will not be
            reached; None draws all samples.
        tenant: Whose request it is: tenants share the device fairly, and never each other's cached results.
        image_id: What the cache knows the image by: one for each image, as pixels, else other draws could be had by
            sending them in another file. None takes their digest where the pixels come with the request; an image
            that is to be recalled without its pixels needs one.
        timeout: Seconds from now within which the result is of use; None for any time.
        use_cache: Whether the result may come from the cache and go into it.
        purpose: Names what the draws are for, where they may serve nothing else. For one purpose they are the same.
    """

    terms: CertificateTerms
    samples: int
    seed: int | None = None
    until: CertificateQuery | None = None
    tenant: str = ""
    image_id: str | None = None
    timeout: float | None = None
    use_cache: bool = True
    purpose: str = ""

    def without_spread(self) -> Self:
        """The same request, but for the bound of the features' spread."""
        return replace(self, terms=replace(self.terms, spectral=False))

    def check(self) -> None:
        """Refuses what cannot be computed.

        Raises:
            ValueError: A value is out of range.
        """
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")
        self.terms.check()


@dataclass(frozen=True, slots=True)
class MeasuredFidelity:
    """How near smoothed features are to f₀, the clean ones of the picture as sent; T tokens.

    Attributes:
        served: Cosine of the sample mean with f₀, both stacked; exact.
        lower: Lower bound of ⟨g, f₀⟩, and where it is positive of cos(g, f₀), with the confidence of the terms and an
            α of its own.
        tokens: ``(T,)`` the first for each token.
    """

    served: float
    lower: float
    tokens: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SmoothingResult:
    """What the smoothing pass found for one image; T tokens. Results from the cache share their arrays.

    Attributes:
        payload: Arrays for the language model, ``image_embeds`` among them.
        terms: As asked; without ``spectral`` where there was no memory for the spread.
        samples: Samples drawn.
        max_samples: Samples that would have been drawn at most.
        planned: Samples that the first request for these draws would have drawn at most. It was fixed before any
            of them was made, while ``max_samples`` of a later request may have been chosen in the light of them.
        ended: Why no more were drawn.
        norm_lower: Lower bound of ρ with the confidence of the terms: a float, or ``(T,)``, all tokens at once.
        norm_estimate: Plug-in estimate of ρ without confidence, of the same shape; None if it cannot be given.
        token_norm_lower: ``(T,)`` lower bounds of all tokens' ρ at once, with an α of their own; None if not asked for.
        fidelity: What is left of the picture as sent; None without noise.
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
    terms: CertificateTerms
    samples: int
    max_samples: int
    planned: int
    ended: Ending
    norm_lower: float | NDArray[np.float64]
    norm_estimate: float | NDArray[np.float64] | None
    token_norm_lower: NDArray[np.float64] | None
    fidelity: MeasuredFidelity | None
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


@dataclass(frozen=True, slots=True)
class Origin:
    """Which draws they are: all that was fixed before the first of them was made.

    Attributes:
        seed: Of the noise.
        planned: Samples that the first request for these draws asked for.
        begun: When that came, in seconds of Unix time.
    """

    seed: int
    planned: int
    begun: float

    @classmethod
    def fresh(cls, planned: int, seed: int | None = None) -> Self:
        """Of new draws; ``seed`` None takes one from the operating system."""
        return cls(fresh_seed() if seed is None else seed, planned, time.time())


@dataclass(frozen=True, slots=True)
class Place:
    """Admission of one image to be decoded and prepared, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Recall:
    """What the engine knows of an image before it is given the pixels.

    Attributes:
        request: What was asked.
        result: The whole answer, where the cache had it; None if the image must be smoothed.
        received: When the request came, on the engine's own monotonic clock.
        proposed: Draws that were proposed to the cache that replicas share; None if there is none.
        agreed: Draws that the replicas make or have, by that cache; None without an answer from it.
        shared: Whether that cache has samples to go on with.
    """

    request: SmoothingRequest
    result: SmoothingResult | None
    received: float
    proposed: Origin | None = None
    agreed: Origin | None = None
    shared: bool = False
