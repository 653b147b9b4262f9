"""Early stopping: decides when sampling for a wanted similarity ends.

The bounds of ρ and of the spread hold at every number of samples at once (section 4), so any rule that depends on past
samples only may end the sampling without weakening the guarantee.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

from fs_runtime.certificate.arguments import Array, ratio_array, similarity_array
from fs_runtime.certificate.confidence_sequence import NormConfidenceSequence
from fs_runtime.certificate.spectral_bound import spectral_similarity
from fs_runtime.certificate.spread_bound import Spread, SpreadConfidenceSequence
from fs_runtime.certificate.tight_bound import tight_values

Decision = Literal["continue", "reached", "out_of_reach"]

_GRID = 64
_ROUNDS = 6  # each narrows the interval by a factor of 64
# Forecasts use the latest block's mean from this many samples on, plus this many of its standard errors.
_LIKELY_FROM = 32
_LIKELY_ERRORS = 4.0


def required_norm(similarity: float, radius: float, sigma: float) -> float:
    """A ρ at which ``tight_similarity`` reaches ``similarity``, at most 1e-9 above the smallest.

    Args:
        similarity: The wanted cosine similarity, in (0, 1].
        radius: r, the ℓ2 size of the attack, in pixels of [0, 1].
        sigma: σ, the standard deviation of the noise, in the same unit.

    Returns:
        A norm in [0, 1] at which the bound as computed is at least ``similarity``.

    Raises:
        ValueError: An argument is NaN or out of its range.

    Example:
        >>> round(required_norm(similarity=0.9706, radius=0.125, sigma=0.25), 3)
        0.9
    """
    return _required_norm(float(similarity_array(similarity)), float(ratio_array(radius, sigma)))


@lru_cache(maxsize=1024)  # requests repeat the same few arguments
def _required_norm(wanted: float, ratio: float) -> float:
    low, high = 0.0, 1.0  # the bound is 1 at ρ = 1
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _GRID)
        first = int(np.argmax(tight_values(grid, np.full(_GRID, ratio)) >= wanted))
        if first == 0:
            return float(grid[0])
        low, high = float(grid[first - 1]), float(grid[first])
    return high


class StoppingRule:
    """Ends sampling when the wanted similarity is certified, or when the remaining samples will not certify it.

    ``out_of_reach`` means one of two things: not even further samples that all equal the mean direction would certify
    it, or further samples four standard errors better than the latest block would not (very likely, not certain).

    Args:
        similarity: The wanted cosine similarity, in (0, 1].
        radius: r, the ℓ2 size of the attack, in pixels of [0, 1].
        sigma: σ in the same unit.
        max_samples: Limit on the number of inner products.

    Raises:
        ValueError: An argument is NaN or out of its range.
    """

    def __init__(self, similarity: float, radius: float, sigma: float, max_samples: int) -> None:
        self._similarity = similarity
        self._radius = radius
        self._sigma = sigma
        self._norm = required_norm(similarity, radius, sigma)
        self._max_samples = max_samples

    def decide(
        self, sequence: NormConfidenceSequence, latest: Array, spread: SpreadConfidenceSequence | None = None
    ) -> Decision:
        """Decides after a block of samples whether to continue.

        Args:
            sequence: Contains all samples so far.
            latest: ``(n,) + shape``, the inner products of the latest block.
            spread: The spread of the same samples; None if it is not tracked.
        """
        if self._certified(sequence.lower, spread.bound() if spread else None):
            return "reached"
        further = max(0, self._max_samples - sequence.count)
        optimistic = [(np.ones(sequence.shape), 0.0)]
        if sequence.count >= _LIKELY_FROM and len(latest) > 1:
            error = latest.std(axis=0, ddof=1) / np.sqrt(len(latest))
            likely = np.minimum(latest.mean(axis=0) + _LIKELY_ERRORS * error, 1.0)
            optimistic.append((likely, spread.observed if spread else 0.0))
        for inner_product, observed in optimistic:
            norm = sequence.forecast(inner_product, self._max_samples)
            if not self._certified(norm, spread.forecast(observed, further) if spread else None):
                return "out_of_reach"
        return "continue"

    def earliest(self, sequence: NormConfidenceSequence, spread: SpreadConfidenceSequence | None, least: int) -> int:
        """Number of further samples before the first check: enough to certify if all of them were ideal.

        Args:
            sequence: Contains all samples so far.
            spread: The spread of the same samples; None if it is not tracked.
            least: Smallest block that is worth a check.
        """
        left = self._max_samples - sequence.count
        block = self._block(sequence, 1.0, spread, 0.0, least, left)
        possible = block < left or self._would_certify(sequence, 1.0, spread, 0.0, left)
        return block if possible else min(least, left)

    def next_block(
        self,
        sequence: NormConfidenceSequence,
        latest: Array,
        spread: SpreadConfidenceSequence | None,
        least: int,
        most: int,
    ) -> int:
        """Number of further samples before the next check: enough to certify if they resemble the latest block.

        It depends on past samples only, like the decisions, so it does not affect the guarantee.

        Args:
            sequence: Contains all samples so far.
            latest: ``(n,) + shape``, the inner products of the latest block.
            spread: The spread of the same samples; None if it is not tracked.
            least: Smallest block that is worth a check.
            most: Largest block.
        """
        most = min(most, self._max_samples - sequence.count)
        return self._block(sequence, latest.mean(axis=0), spread, spread.observed if spread else 0.0, least, most)

    def _block(
        self,
        sequence: NormConfidenceSequence,
        value: float | Array,
        spread: SpreadConfidenceSequence | None,
        observed: float,
        least: int,
        most: int,
    ) -> int:
        """The first of least, 2 least, 4 least, … at which samples of this value certify; ``most`` if none does."""
        size = least
        while size < most:
            if self._would_certify(sequence, value, spread, observed, size):
                return size
            size *= 2
        return max(most, 1)

    def _would_certify(
        self,
        sequence: NormConfidenceSequence,
        value: float | Array,
        spread: SpreadConfidenceSequence | None,
        observed: float,
        further: int,
    ) -> bool:
        norm = sequence.forecast(value, sequence.count + further)
        return self._certified(norm, spread.forecast(observed, further) if spread else None)

    def _certified(self, norm: float | Array, spread: Spread | None) -> bool:
        if np.all(norm >= self._norm):
            return True
        if spread is None:
            return False
        return bool(spectral_similarity(float(np.min(norm)), spread, self._radius, self._sigma) >= self._similarity)
