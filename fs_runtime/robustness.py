"""What is proven about one image: the ``robustness`` entry of answers, receipts and the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fs_runtime.certificate import (
    certified_radius,
    fcsb,
    fcsb_radius,
    score_from_norm,
    served_similarity,
    tight_similarity,
)
from fs_runtime.engine import Ending, Granularity, SmoothingResult
from fs_runtime.query import CertificateQuery, Radius


@dataclass(frozen=True, slots=True)
class Bound:
    """A certified lower bound and a plug-in estimate of the same quantity; the estimate has no confidence."""

    lower: float
    estimate: float | None


@dataclass(frozen=True, slots=True)
class Similarity:
    """Lower bounds of a cosine similarity; null where nothing is certified.

    Attributes:
        tight: Best bound that knows only ρ (docs/guarantee.md section 3).
        fcsb: The paper's bound (section 2), for comparison.
    """

    tight: float | None
    fcsb: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """The bound carried over to means of finitely many samples, which are what the language model reads (section 5).

    For one image of the ball that does not depend on the draws, smoothed with the same number of fresh samples.

    Attributes:
        tight: Lower bound of the cosine similarity of the two means; null where nothing is certified.
        confidence: 1 - 2α: the norm and the two deviations take α each.
    """

    tight: float | None
    confidence: float


@dataclass(frozen=True, slots=True)
class CertifiedRadius:
    """The largest radius at which a similarity is certified; 0 where none is."""

    similarity: float
    tight: Radius
    fcsb: Radius


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Digests of the weights that f is made of; null for a part that is not there."""

    model: str
    purifier: str | None
    mapper: str | None


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that the image waited for its first sample, and seconds of the pass."""

    queue_seconds: float
    smoothing_seconds: float


@dataclass(frozen=True, slots=True)
class ImageRobustness:
    """The certificate of one image.

    With the stated confidence over the server's own random draws, every image within ``radius`` of the image it
    received has a smoothed feature whose cosine similarity to this image's smoothed feature is at least ``smoothed``.

    Attributes:
        certified: Whether ``smoothed.tight`` holds a bound at the asked radius.
        satisfied: Whether it reaches the asked ``min_similarity``; null if none was asked.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        samples: Noise samples used.
        ended: Why no more were used: all that were allowed (``samples``), the asked similarity is certified
            (``reached``), or it will not be by the allowed number (``out_of_reach``).
        confidence: 1 - α.
        granularity: ``image``: mean over the tokens. ``token``: every token by itself, the worst one reported.
        stage: Whose output is certified.
        norm: ρ, the norm of the smoothed unit feature.
        score: Gaussian robustness score (1 + ρ) / 2.
        radius: The asked radius in both spaces.
        smoothed: Certified similarity at that radius of the smoothed features.
        served: The same for means of finitely many samples; weaker, and with a confidence of its own.
        estimate: The same bounds with the estimate of ρ in place of its lower bound: **not** certified.
        certified_radius: For similarity 0.5, and for ``min_similarity`` if asked.
        fingerprints: Digests of model, purifier and mapper.
        timings: Of this image.
    """

    certified: bool
    satisfied: bool | None
    sigma: float
    samples: int
    ended: Ending
    confidence: float
    granularity: Granularity
    stage: Literal["encoder"]
    norm: Bound
    score: Bound
    radius: Radius
    smoothed: Similarity
    served: Served
    estimate: Similarity
    certified_radius: list[CertifiedRadius]
    fingerprints: Fingerprints
    timings: Timings


def certify(result: SmoothingResult, query: CertificateQuery, fingerprints: Fingerprints) -> ImageRobustness:
    """Turns the outcome of the smoothing pass into a certificate.

    With token granularity the bound of the worst token is reported: the bounds rise with ρ, and the lower bounds of
    ρ hold for all tokens at once.
    """
    lower = _smallest(result.norm_lower) or 0.0
    estimate = _smallest(result.norm_estimate)
    gain = result.spectral_norm
    radius = query.radii(gain)
    smoothed = _similarity(lower, radius.model, result.sigma)
    wanted = [0.5] if query.min_similarity in (None, 0.5) else [0.5, query.min_similarity]
    return ImageRobustness(
        certified=smoothed.tight is not None,
        satisfied=None if query.min_similarity is None else (smoothed.tight or 0.0) >= query.min_similarity,
        sigma=result.sigma,
        samples=result.samples,
        ended=result.ended,
        confidence=result.confidence,
        granularity=result.granularity,
        stage="encoder",
        norm=Bound(lower, estimate),
        score=Bound(score_from_norm(lower), None if estimate is None else score_from_norm(estimate)),
        radius=radius,
        smoothed=smoothed,
        served=_served(result, lower, radius.model),
        estimate=_similarity(estimate, radius.model, result.sigma),
        certified_radius=[
            _certified_radius(lower, result.sigma, similarity, gain) for similarity in wanted if similarity
        ],
        fingerprints=fingerprints,
        timings=Timings(result.queue_seconds, result.smoothing_seconds),
    )


def _smallest(norm: float | NDArray[np.float64] | None) -> float | None:
    return None if norm is None else float(np.min(norm))


def _similarity(norm: float | None, radius: float, sigma: float) -> Similarity:
    if norm is None or sigma == 0:
        return Similarity(None, None)
    tight = tight_similarity(norm, radius, sigma)
    paper = fcsb(score_from_norm(norm), radius, sigma)
    return Similarity(tight or None, paper or None)


def _served(result: SmoothingResult, norm: float, radius: float) -> Served:
    alpha = 1 - result.confidence
    tight = 0.0
    if result.sigma > 0:
        statements = np.size(result.norm_lower)  # one, or one for each token
        tight = served_similarity(
            norm, radius, result.sigma, result.samples, 1 - alpha / statements, result.max_samples
        )
    return Served(tight or None, max(0.0, 1 - 2 * alpha))


def _certified_radius(norm: float, sigma: float, similarity: float, gain: float) -> CertifiedRadius:
    if sigma == 0:
        return CertifiedRadius(similarity, Radius(0.0, 0.0), Radius(0.0, 0.0))
    tight = certified_radius(norm, sigma, similarity)
    paper = fcsb_radius(score_from_norm(norm), sigma, similarity)
    return CertifiedRadius(similarity, Radius(tight, tight / gain), Radius(paper, paper / gain))
