"""When sampling for a wanted similarity may end.

The lower bound of ρ holds at every number of samples at once (section 4), so any rule that looks at the past only may
end the sampling without cost to the guarantee.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from fs_runtime.certificate._arguments import Array, ratio_array, similarity_array
from fs_runtime.certificate.confidence_sequence import NormConfidenceSequence
from fs_runtime.certificate.tight_bound import tight_values

Decision = Literal["continue", "reached", "out_of_reach"]

_GRID = 64
_ROUNDS = 6  # each narrows the interval by a factor of 64
# Samples after which the spread of the latest is taken seriously, and how many standard errors are allowed for.
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
    wanted = float(similarity_array(similarity))
    ratio = float(ratio_array(radius, sigma))
    low, high = 0.0, 1.0  # the bound is 1 at ρ = 1
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _GRID)
        first = int(np.argmax(tight_values(grid, np.full(_GRID, ratio)) >= wanted))
        if first == 0:
            return float(grid[0])
        low, high = float(grid[first - 1]), float(grid[first])
    return high


class StoppingRule:
    """Ends sampling when the wanted norm is certified, or when the samples that are left will not certify it.

    Out of reach means one of two things: even samples of inner product 1 from here on would not reach the norm
    (certain), or samples four standard errors better than the latest would not (most likely).

    Args:
        norm: The ρ to certify, from :func:`required_norm`.
        max_samples: Inner products that there can be in all.
    """

    def __init__(self, norm: float, max_samples: int) -> None:
        self.norm = norm
        self.max_samples = max_samples

    def decide(self, sequence: NormConfidenceSequence, latest: Array) -> Decision:
        """What to do after a block of samples.

        Args:
            sequence: All samples so far are in it.
            latest: ``(n,) + shape``, the inner products of the latest block.
        """
        if np.all(sequence.lower >= self.norm):
            return "reached"
        hopes = [np.ones(sequence.shape)]
        if sequence.count >= _LIKELY_FROM and len(latest) > 1:
            error = latest.std(axis=0, ddof=1) / np.sqrt(len(latest))
            hopes.append(np.minimum(latest.mean(axis=0) + _LIKELY_ERRORS * error, 1.0))
        if any(np.any(sequence.forecast(hope, self.max_samples) < self.norm) for hope in hopes):
            return "out_of_reach"
        return "continue"
