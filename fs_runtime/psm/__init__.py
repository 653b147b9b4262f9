"""Interfaces of purifier and smoothness mapper, as the smoothing pass uses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Purifier(Protocol):
    """Denoiser before the encoder (arXiv 2601.16200, PSM). Deterministic given its input."""

    fingerprint: str

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Maps ``(B, C, H, W)`` noisy pixels and their ``(B,)`` noise levels to ``(B, C, H, W)`` pixels."""
        ...


class Mapper(Protocol):
    """Residual network after the encoder (arXiv 2601.16200, PSM). Deterministic given its input."""

    fingerprint: str

    def __call__(self, features: Tensor, sigma: Tensor, grid: tuple[int, int]) -> Tensor:
        """Maps ``(B, T, D)`` token features, ``(B,)`` noise levels and the token grid to ``(B, T, D)`` features."""
        ...


@dataclass(frozen=True, slots=True)
class PsmFacts:
    """Facts about a purifier and its mapper that answers report.

    Attributes:
        name: A label: the name in the card, or else that of the folder. Fingerprints identify the weights.
        encoder: ``this`` if it was trained for the encoder that it is used with; ``any`` for a purifier that fits every
            encoder.
        sigma_low: Smallest noise level of its training, in pixels of [0, 1].
        sigma_high: Largest noise level of its training.
    """

    name: str
    encoder: Literal["this", "any"]
    sigma_low: float
    sigma_high: float

    def trained_for(self, sigma: float) -> bool:
        """Whether a noise level lies in the range. Outside it, certificates still hold, but answers may get worse."""
        return self.sigma_low <= sigma <= self.sigma_high
