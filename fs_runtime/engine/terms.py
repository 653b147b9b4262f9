"""The terms of a certificate: what it speaks of and with what confidence, carried from the plan to the result."""

from __future__ import annotations

from dataclasses import dataclass

from fs_runtime.options import Granularity, sigma_value
from fs_runtime.rounding import alpha_of
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES, FeatureMap

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
class CertificateTerms:
    """What a certificate speaks of. Bounds for other terms come from another statistical process.

    Attributes:
        sigma: Standard deviation σ of the noise, in pixels of [0, 1]; 0 turns smoothing off.
        confidence: 1 - α of the certificate, over the server's own draws.
        granularity: Whether one certificate speaks of all tokens together or one of each.
        feature_map: Which f is certified.
        spectral: Whether to bound the features' spread too, which takes half of α; ``image`` granularity only.
        token_map: Whether to bound ρ of every token too, with an α of its own.
    """

    sigma: float
    confidence: float
    granularity: Granularity = "image"
    feature_map: FeatureMap = ENCODER_FEATURES
    spectral: bool = False
    token_map: bool = False

    @property
    def alphas(self) -> ConfidenceSplit:
        """How α = 1 - confidence is split over the statements."""
        alpha = alpha_of(self.confidence)
        return ConfidenceSplit(alpha / 2, alpha / 2) if self.bounds_spread else ConfidenceSplit(alpha, 0.0)

    @property
    def bounds_spread(self) -> bool:
        """Whether the features' spread is bounded."""
        return self.spectral and self.granularity == "image" and self.sigma > 0

    @property
    def token_confidence(self) -> float | None:
        """Confidence of the statements about all tokens at once; None if there are none."""
        return self.confidence if self.token_map or self.granularity == "token" else None

    def check(self) -> None:
        """Refuses what cannot be computed.

        Raises:
            ValueError: A value is out of range.
        """
        if not 0 < self.confidence <= MAX_CONFIDENCE:
            raise ValueError(f"confidence must lie in (0, 1 - 1e-9], for example 0.999; got {self.confidence}")
        sigma_value(self.sigma)
