"""Purifier and smoothness mapper: what the smoothing pass expects of them."""

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
    """What is said of a purifier and its mapper to those who use them.

    Attributes:
        name: As its card has it, or else its folder: a label. The fingerprints say which weights they are.
        encoder: ``this``: trained for the encoder that it is used with. ``any``: a purifier for pictures, whatever
            encoder reads them.
        sigma_low: Smallest noise level that it was trained for, in pixels of [0, 1].
        sigma_high: Largest one.
    """

    name: str
    encoder: Literal["this", "any"]
    sigma_low: float
    sigma_high: float

    def trained_for(self, sigma: float) -> bool:
        """Whether a noise level lies in the range. Outside, certificates hold all the same, and answers may suffer."""
        return self.sigma_low <= sigma <= self.sigma_high
