"""What is proven about one image: the ``robustness`` entry of answers, receipts and the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fs_runtime.certificate import (
    Spread,
    certified_radius,
    continued,
    fcsb_radius,
    score_from_norm,
    served_similarity,
    spectral_radius,
    tight_similarity,
)
from fs_runtime.certificate.bounds import Similarity
from fs_runtime.certificate.curve import Curve, TokenMap, curve_of
from fs_runtime.engine import ConfidenceSplit, Ending, SmoothingResult
from fs_runtime.options import CertificateQuery, Granularity, Radius, Stage
from fs_runtime.psm import PsmFacts
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.feature_statistics import Floor
from fs_runtime.smoothing.smoother import Smoother


@dataclass(frozen=True, slots=True)
class Bound:
    """A certified lower bound and a plug-in estimate of the same quantity; the estimate has no confidence."""

    lower: float
    estimate: float | None


@dataclass(frozen=True, slots=True)
class Served:
    """The bound carried over to means of finitely many samples (section 5).

    The language model's embeddings are made from such means: typical lengths and, at the encoder's stage, the projector
    come behind them and are not part of the statement.

    For one image of the ball that does not depend on the draws, smoothed with the same number of fresh samples.

    Attributes:
        best: Lower bound of the cosine similarity of the two means; null where nothing is certified.
        confidence: 1 - 2α: the certificate and the two deviations take α each.
    """

    best: float | None
    confidence: float


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near the smoothed features are to f₀, those of the picture as sent without noise, purifier and mapper.

    A high certificate says that an attack moves the smoothed features little; this says that they still show the
    picture. It compares with the picture **as sent**: of an attacked one f₀ is the attacker's, and a low fidelity may
    mean that smoothing took the attack away (docs/guarantee.md).

    Attributes:
        served: Cosine similarity of the sample mean with f₀, both stacked; computed, no estimate. What is served has
            each token of that mean at its typical length: a token that varies more counts less here.
        lower: Lower bound of the cosine similarity of g with f₀, with an α of its own; null where it is not positive.
        clean_to_attacked: Lower bound of the cosine similarity of f₀ with the smoothed features of **every** image
            within the radius; null where there is none.
        confidence: 1 - 2α: of ``lower`` and of the certificate together, and so of ``clean_to_attacked``.
        tokens: ``served`` of every token, rows of the token grid; null if ``token_map`` was not asked for.
    """

    served: float
    lower: float | None
    clean_to_attacked: float | None
    confidence: float
    tokens: list[list[float]] | None


@dataclass(frozen=True, slots=True)
class CertifiedRadius:
    """The largest radius at which a similarity is certified; 0 where none is."""

    similarity: float
    best: Radius
    tight: Radius
    fcsb: Radius


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Digests of the weights that f is made of; null for a part that is not there.

    Attributes:
        model: Vision encoder and projector.
        purifier: Purifier.
        mapper: Smoothness mapper.
        centre: The fixed vector that centred features are without.
    """

    model: str
    purifier: str | None
    mapper: str | None
    centre: str | None = None

    @classmethod
    def of(cls, smoother: Smoother, feature_map: FeatureMap) -> Fingerprints:
        """The digests of this smoother's parts, as far as the feature map uses them."""
        centred = feature_map.centred and smoother.statistics is not None
        return cls(
            model=smoother.encoder.fingerprint,
            purifier=smoother.purifier.fingerprint if smoother.purifier else None,
            mapper=smoother.mapper.fingerprint if smoother.mapper else None,
            centre=smoother.statistics.fingerprint if centred and smoother.statistics else None,
        )


@dataclass(frozen=True, slots=True)
class PsmUse(PsmFacts):
    """Purifier and mapper as they were used.

    Attributes:
        sigma_in_range: Whether the noise level lies in the range that they were trained for. The certificate holds
            outside of it, too; ρ, and the answers, may suffer.
    """

    sigma_in_range: bool

    @classmethod
    def of(cls, facts: PsmFacts | None, sigma: float) -> PsmUse | None:
        """None where none was used: without noise there is nothing for them to do."""
        if facts is None or sigma == 0:
            return None
        return cls(facts.name, facts.encoder, facts.sigma_low, facts.sigma_high, facts.trained_for(sigma))


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
        certified: Whether ``smoothed.best`` holds a bound at the asked radius.
        satisfied: Whether it reaches the asked ``min_similarity``; null if none was asked.
        sigma: Standard deviation of the noise, in pixels of [0, 1].
        samples: Noise samples used.
        ended: Why no more were used: all that were allowed (``samples``), the asked similarity is certified
            (``reached``), or it will not be by the allowed number (``out_of_reach``).
        confidence: 1 - α.
        alphas: How α is split over the statements behind the certificate.
        granularity: ``image``: mean over the tokens. ``token``: every token by itself, the worst one reported.
        stage: Whose output is certified: the encoder's or the projector's.
        centred: Whether the mean feature of a reference set was taken off first.
        floor: Similarity of different images under the same features, for the mean over tokens; null where it was not
            measured: with token granularity, and at noise levels other than that of the model's feature statistics.
        fidelity: What is left of the picture as sent; null without noise.
        norm: ρ, the norm of the smoothed unit feature.
        spread: Upper bounds of the variances of the unit feature across and along its mean; null if not asked for.
        score: Gaussian robustness score (1 + ρ) / 2.
        radius: The asked radius in both spaces.
        smoothed: Certified similarity at that radius of the smoothed features.
        served: The same for means of finitely many samples; weaker, and with a confidence of its own.
        estimate: The same bounds with plug-in values in place of confidence bounds: **not** certified.
        certified_radius: For similarity 0.5, and for ``min_similarity`` if asked.
        curve: The bounds over a range of radii; null if not asked for.
        token_map: Certified similarity of every token; null if not asked for.
        fingerprints: Digests of model, purifier, mapper and centre.
        psm: Which purifier and mapper those are; null where none was used.
        timings: Of this image.
    """

    certified: bool
    satisfied: bool | None
    sigma: float
    samples: int
    ended: Ending
    confidence: float
    alphas: ConfidenceSplit
    granularity: Granularity
    stage: Stage
    centred: bool
    floor: Floor | None
    fidelity: Fidelity | None
    norm: Bound
    spread: Spread | None
    score: Bound
    radius: Radius
    smoothed: Similarity
    served: Served
    estimate: Similarity
    certified_radius: list[CertifiedRadius]
    curve: Curve | None
    token_map: TokenMap | None
    fingerprints: Fingerprints
    psm: PsmUse | None
    timings: Timings

    @property
    def statements(self) -> int:
        """How many statements with an α each this holds: of g, of what is served, of fidelity, of the token map."""
        return 2 + sum(part is not None for part in (self.fidelity, self.token_map))


def certify(
    result: SmoothingResult,
    query: CertificateQuery,
    fingerprints: Fingerprints,
    floor: Floor | None = None,
    psm: PsmFacts | None = None,
) -> ImageRobustness:
    """Turns the outcome of the smoothing pass into a certificate.

    With token granularity the bound of the worst token is reported: the bounds rise with ρ, and the lower bounds of
    ρ hold for all tokens at once.
    """
    terms, sigma = result.terms, result.terms.sigma
    lower = _smallest(result.norm_lower) or 0.0
    estimate = _smallest(result.norm_estimate)
    spread_estimate = None
    if result.spread_estimate is not None:
        spread_estimate = Spread(min(result.spread_estimate, 1.0), min(result.spread_estimate, 4.0))
    radius = query.radii(result.spectral_norm)
    smoothed = Similarity.at(lower, result.spread, radius.model, sigma)
    wanted = [0.5] if query.min_similarity in (None, 0.5) else [0.5, query.min_similarity]
    curve = None
    if query.curve and sigma > 0:
        plug_in = None if estimate is None else (estimate, spread_estimate)
        curve = curve_of(lower, result.spread, plug_in, sigma, result.spectral_norm)
    return ImageRobustness(
        certified=smoothed.best is not None,
        satisfied=None
        if query.min_similarity is None
        else smoothed.best is not None and smoothed.best >= query.min_similarity,
        sigma=sigma,
        samples=result.samples,
        ended=result.ended,
        confidence=terms.confidence,
        alphas=terms.alphas,
        granularity=terms.granularity,
        stage=terms.feature_map.stage,
        centred=terms.feature_map.centred,
        floor=floor if terms.granularity == "image" else None,
        fidelity=_fidelity(result, smoothed.best),
        norm=Bound(lower, estimate),
        spread=result.spread,
        score=Bound(score_from_norm(lower), None if estimate is None else score_from_norm(estimate)),
        radius=radius,
        smoothed=smoothed,
        served=_served(result, lower, smoothed.best, radius.model),
        estimate=Similarity.at(estimate, spread_estimate, radius.model, sigma),
        certified_radius=[_certified_radius(result, lower, similarity) for similarity in wanted if similarity],
        curve=curve,
        token_map=_token_map(result, radius.model),
        fingerprints=fingerprints,
        psm=PsmUse.of(psm, sigma),
        timings=Timings(result.queue_seconds, result.smoothing_seconds),
    )


def _smallest(norm: float | NDArray[np.float64] | None) -> float | None:
    return None if norm is None else float(np.min(norm))


def _served(result: SmoothingResult, norm: float, smoothed: float | None, radius: float) -> Served:
    terms = result.terms
    best = 0.0
    if smoothed is not None:
        statements = np.size(result.norm_lower)  # one, or one for each token
        limit, share = continued(result.planned, result.max_samples)
        best = served_similarity(
            norm, radius, terms.sigma, result.samples, terms.confidence, limit, smoothed, share / statements
        )
    return Served(best or None, max(0.0, 1 - 2 * (1 - terms.confidence)))


def _certified_radius(result: SmoothingResult, norm: float, similarity: float) -> CertifiedRadius:
    sigma, gain = result.terms.sigma, result.spectral_norm
    if sigma == 0:
        return CertifiedRadius(similarity, *(Radius(0.0, 0.0),) * 3)
    radii = _radii(norm, result.spread, sigma, similarity)
    return CertifiedRadius(similarity, *(Radius(radius, radius / gain) for radius in radii))


@lru_cache(maxsize=4096)  # most of the time of a certificate, and a cached image has the same each time
def _radii(norm: float, spread: Spread | None, sigma: float, similarity: float) -> tuple[float, float, float]:
    """The certified radius by the best bound, by ``tight`` and by FCSB."""
    tight = certified_radius(norm, sigma, similarity)
    best = tight if spread is None else spectral_radius(norm, spread, sigma, similarity)
    return best, tight, fcsb_radius(score_from_norm(norm), sigma, similarity)


def _fidelity(result: SmoothingResult, certified: float | None) -> Fidelity | None:
    found = result.fidelity
    if found is None:
        return None
    lower = found.lower if found.lower > 0 else None
    both = None
    if lower is not None and certified is not None and result.terms.granularity == "image":
        both = _cosine_of_sum(certified, lower)
    return Fidelity(
        served=found.served,
        lower=lower,
        clean_to_attacked=both,
        confidence=max(0.0, 1 - 2 * (1 - result.terms.confidence)),
        tokens=_rows(result, found.tokens) if result.terms.token_map else None,
    )


def _cosine_of_sum(one: float, other: float) -> float | None:
    """Cosine of the sum of two angles given by their cosines, the largest angle that two sides of a spherical triangle
    leave for the third; None from π on."""
    sum_of_angles = math.acos(min(one, 1.0)) + math.acos(min(other, 1.0))
    return math.cos(sum_of_angles) if sum_of_angles < math.pi else None


def _rows(result: SmoothingResult, tokens: NDArray[np.float64]) -> list[list[float]]:
    """Values of tokens as rows of the rectangles that the tokens fill."""
    rows = [columns for count, columns in result.token_grids for _ in range(count)]
    return [row.tolist() for row in np.split(tokens, np.cumsum(rows)[:-1])]


def _token_map(result: SmoothingResult, radius: float) -> TokenMap | None:
    if result.token_norm_lower is None or result.terms.sigma == 0:
        return None
    similarity = tight_similarity(result.token_norm_lower, radius, result.terms.sigma)
    return TokenMap(result.terms.confidence, _rows(result, similarity))
