"""What a certificate is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Space = Literal["model", "client"]


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
