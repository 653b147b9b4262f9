"""An upper confidence bound of the largest variance of f in one direction, valid at every number of samples.

**What is observed.** Let a_i be a vector of norm at most 1 computed from samples before the i-th (their mean), and s
the largest eigenvalue of (1/m) Σ (f_i - a_i)(f_i - a_i)ᵀ over m samples.

**What is bounded.** λ = max {E⟨v, f⟩² : ‖v‖ = 1, ⟨v, g⟩ = 0}, the largest variance across g. The maximiser v* does not
depend on the samples, so this is a statement about the scalars W_i = ⟨v*, f_i⟩, and no dimension enters:
(1/m) Σ ⟨v*, f_i - a_i⟩² ≤ s whatever v* is.

**Clipping.** |W_i| ≤ 1, E W_i = 0, E W_i² = λ. With e = ⟨v*, a_i⟩ put Y_i = min((W_i - e)², 1 + λ). Then
E[Y_i | past] ≥ λ: where (1 + |e|)² ≤ 1 + λ nothing is clipped and E(W - e)² = λ + e². Otherwise
(W - e)² ≤ (1 + |e|)² gives E Y ≥ (λ + e²)(1 + λ) / (1 + |e|)², and this is at least λ because
(λ + e²)(1 + λ) - λ(1 + |e|)² = (λ - |e|)² ≥ 0.

**Bets.** For a constant β in (0, 1) the capital Π (1 + β(λ - Y_i)) is a non-negative supermartingale. log(1 + β(λ - y))
is concave in y, so on [0, 1 + λ] it lies above its chord, and a fixed mixture with weights w_j has at least the capital

    M_m(λ) = Σ_j w_j exp(m [(1 - q) log(1 + β_j λ) + q log(1 - β_j)]),    q = min(s / (1 + λ), 1).

M increases in λ. By Ville's inequality P(some m has M_m(λ) ≥ 1/α) ≤ α, so that sup {l ≤ 1 : M_m(l) < 1/α} is a bound
of λ at all m at once.

**Along g.** V = Var⟨u, f⟩ with u = g / ‖g‖: W = (⟨u, f⟩ - ρ) / 2 and e = (⟨u, a_i⟩ - ρ) / 2 fulfil the same conditions
with V / 4 for λ and s / 4 for s.

Source: docs/guarantee.md section 8; the lower tail of a bounded mean by betting as in Waudby-Smith and Ramdas,
JRSS-B 2024.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fs_runtime.certificate.arguments import Array, confidence_value

_BETS = np.array([0.25, 0.5, 0.75, 0.9, 0.97, 0.99])  # β_j; the best is about 1 - s / λ
_LOG_WEIGHT = -np.log(len(_BETS))
_LOG_LOSS = np.log1p(-_BETS)
_GRID = 33
_ROUNDS = 6  # each narrows the interval by a factor of 32
_THRESHOLD_MARGIN = 1e-9  # added to log(1/α); far above the rounding errors of log M


@dataclass(frozen=True, slots=True)
class Spread:
    """Upper bounds of variances of the unit feature f.

    Attributes:
        across: λ ≥ Var⟨v, f⟩ for every unit v orthogonal to g, in [0, 1].
        along: V ≥ Var⟨g / ‖g‖, f⟩, in [0, 4].

    Raises:
        ValueError: A bound is NaN or out of its range.
    """

    across: float
    along: float

    def __post_init__(self) -> None:
        for name, value, most in (("across", self.across, 1), ("along", self.along, 4)):
            if not 0 <= value <= most:
                raise ValueError(f"{name} must lie in [0, {most}]; use {most} where nothing is known; got {value}")


class SpreadConfidenceSequence:
    """Upper bounds of both variances, each with half of 1 - confidence, at every number of samples at once.

    Args:
        confidence: 1 - α of both statements together, in (0, 1).

    Raises:
        ValueError: ``confidence`` is outside (0, 1).

    Example:
        >>> sequence = SpreadConfidenceSequence(confidence=0.999)
        >>> sequence.observe(observed=0.002, count=1024)
        >>> spread = sequence.bound()
        >>> round(spread.across, 3), round(spread.along, 3)
        (0.015, 0.041)
    """

    def __init__(self, confidence: float) -> None:
        self._threshold = -np.log((1 - confidence_value(confidence)) / 2) + _THRESHOLD_MARGIN
        self.observed = 0.0
        self.count = 0

    def observe(self, observed: float, count: int) -> None:
        """Sets the statistics of all samples so far.

        Args:
            observed: s, or an upper bound: largest eigenvalue of the mean of (f_i - a_i)(f_i - a_i)ᵀ with predictable
                a_i, ‖a_i‖ ≤ 1.
            count: m, samples in that mean.

        Raises:
            ValueError: ``observed`` is negative or not finite, or ``count`` falls.
        """
        if not (observed >= 0 and np.isfinite(observed)):
            raise ValueError(f"observed must be finite and not negative; got {observed}")
        if count < self.count:
            raise ValueError(f"count must not fall; got {count} after {self.count}")
        self.observed, self.count = observed, count

    def bound(self) -> Spread:
        """The current bounds; before the first observation 1 and 4, which always hold."""
        return self._bound(self.observed, self.count)

    def forecast(self, observed: float, further: int) -> Spread:
        """The bounds after ``further`` more samples with the largest eigenvalue ``observed``."""
        count = self.count + further
        return self._bound((self.observed * self.count + observed * further) / max(count, 1), count)

    def _bound(self, observed: float, count: int) -> Spread:
        return Spread(
            across=_upper(observed, count, self._threshold), along=4 * _upper(observed / 4, count, self._threshold)
        )


def _upper(observed: float, count: int, threshold: float) -> float:
    """The smallest point found with log M ≥ threshold: at or just above the supremum; 1 where there is none."""
    low, high = 0.0, 1.0
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _GRID)
        rejected = _log_capital(grid, observed, count) >= threshold
        if not rejected[-1]:
            return 1.0
        first = int(np.argmax(rejected))
        if first == 0:
            return float(grid[0])
        low, high = float(grid[first - 1]), float(grid[first])
    return high


def _log_capital(variance: Array, observed: float, count: int) -> Array:
    """log M at each λ of ``variance``."""
    share = np.minimum(observed / (1 + variance), 1.0)  # q
    gain = np.log1p(_BETS[:, None] * variance)
    growth = count * ((1 - share) * gain + share * _LOG_LOSS[:, None])
    return np.asarray(np.logaddexp.reduce(growth + _LOG_WEIGHT, axis=0))
