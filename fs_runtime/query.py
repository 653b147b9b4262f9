"""What a certificate is asked about."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Space = Literal["model", "client"]

# Below it the noise is not Gaussian any more: float32 pixels near 1 lie 6e-8 apart, and x + δ is rounded to them.
MIN_SIGMA = 1e-3
MAX_RADIUS = 1e6  # far beyond the size of any change of any image; more would overflow somewhere


def sigma_value(sigma: float) -> float:
    """``sigma``, if it is 0, which turns smoothing off, or large enough for its noise to be Gaussian.

    Raises:
        ValueError: It is not; the message says what would be.
    """
    if sigma == 0 or MIN_SIGMA <= sigma < math.inf:
        return sigma
    raise ValueError(f"sigma must be 0, which turns smoothing off, or at least {MIN_SIGMA:g}; got {sigma:g}")


@dataclass(frozen=True, slots=True)
class Radius:
    """One ℓ2 radius, in pixels of [0, 1], on the image the encoder reads and on the client's decoded to 8-bit RGB."""

    model: float
    client: float


@dataclass(frozen=True, slots=True)
class CertificateQuery:
    """What a certificate is asked about.

    Attributes:
        radius: ℓ2 size of the attack, in pixels of [0, 1].
        space: Where it is measured: ``client`` on the image as sent, decoded to 8-bit RGB;
            ``model`` on the image the encoder reads.
        min_similarity: Similarity below which the certificate does not satisfy the caller; None for none.
        curve: Whether to give the bounds over a range of radii too.
    """

    radius: float
    space: Space = "model"
    min_similarity: float | None = None
    curve: bool = False

    def radii(self, spectral_norm: float) -> Radius:
        """The radius in both spaces, for an image whose preprocessing has this ‖A‖₂ (docs/guarantee.md section 6)."""
        if self.space == "client":
            return Radius(self.radius * spectral_norm, self.radius)
        return Radius(self.radius, self.radius / spectral_norm)
