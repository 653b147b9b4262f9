"""A lower confidence bound of ρ = ‖g(x)‖ that holds at all sample sizes at once (a confidence sequence).

**Bets.** For a candidate m of the mean and b > 1, the bet λ = 1 / (b + m) < 1 / (1 + m) turns the factor
1 + λ (X - m) into (b + X) / (b + m). A part of the capital is split over a short list of constant bets b_1 < … < b_k.
The rest belongs to a *leader* L, which makes one of these bets at a time, L_i for sample i, chosen from the samples
before:

    K_t(m) = w Π_{i ≤ t} (L_i + X_i) / (L_i + m)  +  (1 - w) / k Σ_j Π_{i ≤ t} (b_j + X_i) / (b_j + m).

Every K_t(m) decreases in m, so that {m : K_t(m) ≥ 1/α} is an interval that ends at one root m_t, and

    lower_t = max(0, m_1, …, m_t).

**Validity.** Let E[X_i | past] ≤ ρ for every i. Then E[(b + X_i) / (b + ρ) | past] ≤ 1 for each b that the past
decides, so K_t(ρ) is a non-negative supermartingale that starts at 1, and P(some t has K_t(ρ) ≥ 1/α) ≤ α (Ville). If
lower_t > ρ, then m_s > ρ for some s ≤ t, and K_s(ρ) ≥ K_s(m_s) ≥ 1/α as K_s decreases. Hence P(some t has
lower_t > ρ) ≤ α: one event for all times and all m, with no grid over m. No bet depends on m.

**State.** K_t(m) needs the sums G_j = Σ_i log(b_j + X_i), the leader's sum, and how often the leader made each bet:
memory and time per sample are constant. Newton's method approaches the root: log K_t is convex and decreasing in m, so
steps from the left never pass it. If the method stops early, the bound is smaller, never wrong.

**Which bets.** The largest bet, b_1 = 1 + 1/256, stakes nearly all of the capital. Staking all, b = 1, multiplies it
by (1 + X) / (1 + m). No valid method does better than b = 1 on samples that barely vary, where its root is
(1 + X) α^{1/t} - 1: a law that takes the value -1 with probability 1 - α^{1/t} shows the same samples with
probability α. b_1 needs at most 1% more samples than b = 1, and survives an X of -1. The leader starts with b_1 and
switches to a smaller bet when samples near -1 occur or the spread is wide. It makes the bet whose own root, with half
of log(1/α), is largest so far: the best bet for the bound at twice as many samples. The part that is split over all
bets limits the loss when the leader was wrong. `fs-serve bench bets` compares betting schemes (docs/bets.md).

Source: docs/guarantee.md section 4; Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting",
JRSS-B 2024; the part split over constant bets is Cover's universal portfolio on a finite set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fs_runtime.certificate.arguments import Array, confidence_value

_OFFSETS: Array = 1 + np.array([4.0**k for k in range(-4, 3)])[:, None, None]  # b_j, (bets, 1, 1), as all arrays below
_LEADER_WEIGHT = 0.9  # w
_LOG_WEIGHTS = np.log([*np.full(len(_OFFSETS), (1 - _LEADER_WEIGHT) / len(_OFFSETS)), _LEADER_WEIGHT])[:, None, None]
_HORIZON = 2.0  # the leader bets for the bound at this many times the samples so far
_NEWTON_STEPS = 2
_BLOCK_VALUES = 1 << 14  # per array, so that a block fits into the CPU's cache


class NormConfidenceSequence:
    """Lower bound of ρ with P(``lower`` > ρ at any time) ≤ α, from inner products with a predictable direction.

    Args:
        confidence: 1 - α, in (0, 1), of each stream by itself. For a statement about all streams at once, split α
            over them.
        shape: Shape of the array of parallel streams, for instance ``(tokens,)``; ``()`` for one stream.

    Raises:
        ValueError: ``confidence`` is outside (0, 1).

    Example:
        >>> sequence = NormConfidenceSequence(confidence=0.999)
        >>> sequence.update(np.full(256, 0.9))
        >>> sequence.count, round(sequence.lower, 3)
        (256, 0.849)
    """

    def __init__(self, confidence: float, shape: tuple[int, ...] = ()) -> None:
        self.confidence = confidence_value(confidence)
        self.shape = shape
        self._threshold = -np.log1p(-self.confidence)
        self._count = 0
        streams = int(np.prod(shape))
        self._log_growth = np.zeros((len(_OFFSETS) + 1, streams))  # G_j, then the leader's
        self._held = np.zeros((len(_OFFSETS), streams))  # how often the leader made each bet
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
        """Adds further samples; how they are split over calls makes no difference.

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

    def state(self) -> dict[str, Array]:
        """State from which :meth:`restored` makes the sequence again, given confidence and shape; of constant size."""
        return {
            "count": np.array([self._count], dtype=np.float64),
            "log_growth": self._log_growth,
            "held": self._held,
            "lower": self._lower,
        }

    @classmethod
    def restored(cls, confidence: float, shape: tuple[int, ...], state: Mapping[str, Array]) -> Self:
        """The sequence with this :meth:`state`.

        Raises:
            ValueError: An array is missing, has another shape, or holds a value that is not finite.
        """
        sequence = cls(confidence, shape)
        blank = sequence.state()
        for name, value in blank.items():
            if name not in state or state[name].shape != value.shape or not np.all(np.isfinite(state[name])):
                raise ValueError(f"{name} is not that of a confidence sequence of shape {shape}")
        sequence._count = int(state["count"][0])
        sequence._log_growth, sequence._held, sequence._lower = (
            np.array(state[name], dtype=np.float64) for name in ("log_growth", "held", "lower")
        )
        return sequence

    def forecast(self, inner_product: float | Array, count: int) -> float | Array:
        """Largest possible ``lower`` at ``count`` samples if every further sample equals ``inner_product``.

        It is the value of ``lower`` if the leader makes the largest bet from now on; no other bet gains more on samples
        that do not vary. With ``inner_product`` 1 it bounds ``lower`` for any further samples.

        Args:
            inner_product: A value in [-1, 1] for each stream, of ``shape``.
            count: Samples in all, at least those seen so far.

        Returns:
            The bound, shaped as ``lower``.
        """
        further = max(0, count - self._count)
        if not further:
            return self.lower
        value = np.broadcast_to(np.asarray(inner_product, dtype=np.float64), self.shape).reshape(-1)
        gains = np.log(_OFFSETS[:, 0] + value)  # (bets, streams)
        log_growth = self._log_growth + further * np.concatenate([gains, gains[:1]])
        held = self._held.copy()
        held[0] += further
        total = np.array([[float(self._count + further)]])
        roots = _lower_roots(log_growth[:, None], held[:, None], total, self._threshold)
        bound = np.maximum(self._lower, roots[0])
        return bound.reshape(self.shape) if self.shape else float(bound[0])

    def _update_block(self, samples: Array) -> None:
        counts = self._count + np.arange(1.0, len(samples) + 1)[:, None]  # (n, 1)
        gains = np.log(_OFFSETS + samples)  # (bets, n, streams)
        log_growth = _running_sums(self._log_growth[:-1], gains)
        leading = _leading_bet(log_growth[:, :-1], counts - 1, self._threshold)[None]  # from the samples before each
        lead = _running_sums(self._log_growth[-1:], np.take_along_axis(gains, leading, axis=0))
        held = _running_sums(self._held, np.arange(len(_OFFSETS))[:, None, None] == leading)[:, 1:]
        log_growth = np.concatenate([log_growth, lead])[:, 1:]
        roots = _lower_roots(log_growth, held, counts, self._threshold)
        self._lower = np.maximum(self._lower, roots.max(axis=0))
        self._log_growth, self._held = log_growth[:, -1].copy(), held[:, -1].copy()
        self._count += len(samples)


def _running_sums(start: Array, steps: Array) -> Array:
    """``(k, n + 1, streams)``: ``start`` ``(k, streams)`` and the sums with ``steps`` ``(k, n, streams)``, in order."""
    return np.cumsum(np.concatenate([start[:, None], steps], axis=1), axis=1)


def _leading_bet(log_growth: Array, count: Array, threshold: float) -> NDArray[np.intp]:
    """Index of the leader's next bet, ``(n, streams)``, after ``count`` ``(n, 1)`` samples.

    ``log_growth`` is G_j, ``(bets, n, streams)``. Compares the roots that each bet alone would have; before the first
    sample the largest bet wins.
    """
    roots = np.exp((log_growth - threshold / _HORIZON) / np.maximum(count, 1)) - _OFFSETS
    leading: NDArray[np.intp] = roots.argmax(axis=0)
    return leading


def _lower_roots(log_growth: Array, held: Array, count: Array, threshold: float) -> Array:
    """The root of log K(m) = threshold, or a point just below it.

    Args:
        log_growth: ``(bets + 1, n, streams)`` G_j, then the leader's.
        held: ``(bets, n, streams)`` how often the leader made each bet.
        count: ``(n, 1)`` number of samples.
        threshold: log(1/α).

    Returns:
        ``(n, streams)``; 0 where the root is not positive.
    """
    # No sum above has a term beyond 6, so rounding moves log K by less than 4e-16 n² + 5e-14 n.
    log_stake = _LOG_WEIGHTS + log_growth - (threshold + 1e-15 * count * (count + 100))
    bets, lead = log_stake[:-1], log_stake[-1]
    # Starts to the left of the root: where one part of the capital reaches the threshold, the total does too.
    # The leader's part is bounded by Σ log(L_i + m) ≤ t log(mean L + m).
    leads = np.exp(lead / count) - _sum_over_bets(held, _OFFSETS) / count
    root: Array = np.maximum(np.maximum((np.exp(bets / count) - _OFFSETS).max(axis=0), leads), 0.0)
    for _ in range(_NEWTON_STEPS):
        payoff = _OFFSETS + root
        log_payoff = np.log(payoff)
        log_capital = bets - count * log_payoff
        log_lead = lead - _sum_over_bets(held, log_payoff)
        top = np.maximum(log_capital.max(axis=0), log_lead)
        share, lead_share = np.exp(log_capital - top), np.exp(log_lead - top)
        total = share.sum(axis=0) + lead_share
        excess = np.maximum(top + np.log(total), 0.0)
        np.reciprocal(payoff, out=payoff)
        slope = count * _sum_over_bets(share, payoff) + lead_share * _sum_over_bets(held, payoff)
        root += excess * total / slope
    return root


def _sum_over_bets(factors: Array, values: Array) -> Array:
    """Σ_j of the products, ``(n, streams)``; sums in the same order for every n, so updates may be split anywhere."""
    total: Array = factors[0] * values[0]
    for factor, value in zip(factors[1:], values[1:], strict=True):
        total += factor * value
    return total
