"""A lower confidence bound of ρ = ‖g(x)‖ that may be watched while sampling.

**Bets.** For a candidate m of the mean and b ≥ 1, the bet λ = 1 / (b + m) ≤ 1 / (1 + m) turns the factor
1 + λ (X - m) into (b + X) / (b + m). We hold a fixed mixture of such bets, with weights w_j that add up to 1:

    K_t(m) = Σ_j w_j Π_{i ≤ t} (b_j + X_i) / (b_j + m).

Every K_t(m) decreases in m, so that {m : K_t(m) ≥ 1/α} is an interval that ends at one root m_t, and

    lower_t = max(0, m_1, …, m_t).

**Validity.** Let E[X_i | past] ≤ ρ for every i. Then E[(b + X_i) / (b + ρ) | past] ≤ 1, so K_t(ρ) is a non-negative
supermartingale that starts at 1, and P(some t has K_t(ρ) ≥ 1/α) ≤ α (Ville). If lower_t > ρ, then m_s > ρ for some
s ≤ t, and K_s(ρ) ≥ K_s(m_s) ≥ 1/α as K_s decreases. Hence P(some t has lower_t > ρ) ≤ α: one event for all times and
all m, with no grid over m. The weights and b_j are constants, so no bet looks ahead.

**State.** K_t(m) needs the sums G_j = Σ_i log(b_j + X_i) only: memory and time per sample are constant. The root is
approached by Newton's method: log K_t is convex and decreasing in m, so that steps from the left never pass it.
Where the method stops early the bound is smaller, never wrong.

**Which bets.** b = 1 bets all that can be bet: (1 + X) / (1 + m). No valid method does better on samples that barely
vary, where its root is (1 + X) α^{1/t} - 1: a law that takes the value -1 with probability 1 - α^{1/t} shows the same
samples with probability α. It holds most of the weight. The others keep the capital alive where samples near -1 occur
or the spread is wide.

Source: docs/guarantee.md section 4; Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
JRSS-B 2024; the mixture is Cover's universal portfolio on a finite set.
"""

from __future__ import annotations

import numpy as np

from fs_runtime.certificate._arguments import Array, confidence_value

# b = 1 + 2 / η for η = ∞, 64, 16, 4, 1, 1/4, 1/16.
_OFFSETS = np.array([1, 1.03125, 1.125, 1.5, 3, 9, 33])[:, None, None]  # (bets, 1, 1), as all arrays below
_DECAY = 0.7 ** np.arange(6)
_LOG_WEIGHTS = np.log([0.75, *(0.25 * _DECAY / _DECAY.sum())])[:, None, None]
_THRESHOLD_MARGIN = 1e-9  # added to log(1/α): far more than the arithmetic of log K can err
_NEWTON_STEPS = 3
_BLOCK_VALUES = 1 << 15


class NormConfidenceSequence:
    """Lower bound of ρ with P(``lower`` > ρ at any time) ≤ α, from inner products with a predictable direction.

    Args:
        confidence: 1 - α, in (0, 1), of each stream by itself. For a statement about all streams at once split α
            over them.
        shape: Shape of the streams that run side by side, for instance ``(tokens,)``; ``()`` for one stream.

    Raises:
        ValueError: ``confidence`` is outside (0, 1).

    Example:
        >>> sequence = NormConfidenceSequence(confidence=0.999)
        >>> sequence.update(np.full(256, 0.9))
        >>> sequence.count, round(sequence.lower, 3)
        (256, 0.848)
    """

    def __init__(self, confidence: float, shape: tuple[int, ...] = ()) -> None:
        self.confidence = confidence_value(confidence)
        self.shape = shape
        self._threshold = -np.log1p(-self.confidence) + _THRESHOLD_MARGIN
        self._count = 0
        streams = int(np.prod(shape))
        self._log_growth = np.zeros((len(_OFFSETS), streams))  # G_j
        self._lower = np.zeros(streams)

    @property
    def count(self) -> int:
        """Samples seen so far, per stream."""
        return self._count

    @property
    def lower(self) -> float | Array:
        """The bound: a float in [0, 1) for ``shape == ()``, else an array of ``shape``; it never falls."""
        return self._lower.reshape(self.shape).copy() if self.shape else float(self._lower[0])

    def update(self, inner_products: Array) -> None:
        """Takes in further samples; how they are split over calls makes no difference.

        Args:
            inner_products: ``(n,) + shape``, X_i = ⟨û, f_i⟩ in order of time, with û a unit vector computed from
                samples before the i-th only. Values beyond [-1, 1] are rounding and are clipped.

        Raises:
            ValueError: The shape does not fit, or a value is NaN or infinite. The state is then unchanged.
        """
        samples = np.asarray(inner_products, dtype=np.float64)
        if samples.shape[1:] != self.shape or samples.ndim != 1 + len(self.shape):
            raise ValueError(f"inner_products must have shape (n,) + {self.shape}, time first; got {samples.shape}")
        if not np.all(np.isfinite(samples)):
            raise ValueError("inner_products must be finite; check the features for NaN before adding them up")
        samples = np.clip(samples.reshape(len(samples), self._lower.size), -1, 1)
        block = max(1, _BLOCK_VALUES // max(1, self._log_growth.size))
        for start in range(0, len(samples), block):
            self._update_block(samples[start : start + block])

    def forecast(self, inner_product: float | Array, count: int) -> float | Array:
        """What ``lower`` would be at ``count`` samples if each one from here on had the value ``inner_product``.

        Args:
            inner_product: A value in [-1, 1] for each stream, of ``shape``.
            count: Samples in all, at least those seen so far.

        Returns:
            The bound, shaped as ``lower``.
        """
        further = max(0, count - self._count)
        value = np.broadcast_to(np.asarray(inner_product, dtype=np.float64), self.shape).reshape(-1)
        with np.errstate(divide="ignore"):
            log_growth = self._log_growth + further * np.log(_OFFSETS[:, 0] + value)
        total = np.array([[max(1.0, float(self._count + further))]])
        bound = np.maximum(self._lower, _lower_roots(log_growth[:, None], total, self._threshold)[0])
        return bound.reshape(self.shape) if self.shape else float(bound[0])

    def _update_block(self, samples: Array) -> None:
        with np.errstate(divide="ignore"):  # all is lost at b = 1, X = -1
            log_growth = np.log(_OFFSETS + samples)  # (bets, n, streams)
        log_growth[:, 0] += self._log_growth
        np.cumsum(log_growth, axis=1, out=log_growth)
        counts = np.arange(self._count + 1, self._count + 1 + len(samples), dtype=np.float64)
        roots = _lower_roots(log_growth, counts[:, None], self._threshold)
        self._lower = np.maximum(self._lower, roots.max(axis=0))
        self._log_growth = log_growth[:, -1].copy()
        self._count += len(samples)


def _lower_roots(log_growth: Array, count: Array, threshold: float) -> Array:
    """Points at or just below the root of log K(m) = threshold.

    Args:
        log_growth: ``(bets, n, streams)`` G_j.
        count: ``(n, 1)`` samples behind each.
        threshold: log(1/α).

    Returns:
        ``(n, streams)``; 0 where the root is not positive.
    """
    log_stake = _LOG_WEIGHTS + log_growth
    # Where one bet alone reaches the threshold, all together do: a start to the left of the root.
    alone = np.exp((log_stake - threshold) / count) - _OFFSETS
    root: Array = np.maximum(alone.max(axis=0), 0.0)
    for _ in range(_NEWTON_STEPS):
        payoff = _OFFSETS + root
        log_capital = log_stake - count * np.log(payoff)
        top = log_capital.max(axis=0)
        share = np.exp(log_capital - top)
        total = share.sum(axis=0)
        excess = top + np.log(total) - threshold
        slope = count * (share / payoff).sum(axis=0) / total
        root += np.maximum(excess, 0.0) / slope
    return root
