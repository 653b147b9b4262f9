"""Bounds over a range of radii, and over the tokens of one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fs_runtime.certificate.bounds import Bounds, bounds_at
from fs_runtime.certificate.spread_bound import Spread

_RATIOS = np.arange(61) / 20  # r / σ


@dataclass(frozen=True, slots=True)
class Curve:
    """Bounds of the similarity as functions of the radius.

    Attributes:
        radius_model: ℓ2 radii on the image the encoder reads, in pixels of [0, 1], from 0 to 3 σ.
        radius_client: The same radii on the image as sent.
        certified: Lower bounds; all hold at once with the certificate's confidence.
        estimate: The bounds at plug-in values: **not** certified. Null if there is no estimate.
    """

    radius_model: list[float]
    radius_client: list[float]
    certified: Bounds
    estimate: Bounds | None


@dataclass(frozen=True, slots=True)
class TokenMap:
    """Certified similarity of each token at the asked radius, for all tokens at once, with its own confidence.

    Attributes:
        confidence: 1 - α of the map by itself; together with the image's certificate it is 1 - 2α.
        similarity: Rows of the token grid, each a list over its columns; 0.0 for no certificate.
    """

    confidence: float
    similarity: list[list[float]]


def curve_of(
    norm: float,
    spread: Spread | None,
    estimate: tuple[float, Spread | None] | None,
    sigma: float,
    spectral_norm: float,
) -> Curve:
    """The curve from radius 0 to 3 σ, in steps of σ / 20.

    Args:
        norm: Lower bound of ρ.
        spread: Upper bounds of the variances; None if they were not asked for.
        estimate: Plug-in values of both; None if there are none.
        sigma: σ > 0 in pixels of [0, 1].
        spectral_norm: ‖A‖₂ from the client's pixels to the encoder's.
    """
    radius = _RATIOS * sigma
    return Curve(
        radius_model=radius.tolist(),
        radius_client=(radius / spectral_norm).tolist(),
        certified=bounds_at(norm, spread, radius, sigma),
        estimate=None if estimate is None else bounds_at(*estimate, radius, sigma),
    )
