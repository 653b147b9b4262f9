"""The served bound: similarity of the means of finitely many samples, which the language model reads.

Let ĝ be the mean of n unit features with mean g, ‖g‖ ≥ ρ, and S_k the sum of the first k differences d_i = f_i - g.
Then ‖d_i‖ ≤ a = 2 and E‖d_i‖² = 1 - ‖g‖² ≤ v = 1 - ρ². By Pinelis' form of Bennett's inequality, free of the dimension,

    P(max_{k ≤ N} ‖S_k‖ ≥ N ε) ≤ 2 exp(-(N v / a²) h(a ε / v)),    h(u) = (1 + u) log(1 + u) - u.

In short: in a Hilbert space E cosh(λ‖S_k‖) grows by a factor of at most 1 + E(e^{λ‖d‖} - 1 - λ‖d‖) per sample, as
the second derivative of cosh(λ‖S + s d‖) in s is at most λ²‖d‖² e^{λ s ‖d‖} cosh(λ‖S‖). Doob's inequality gives the
maximum over k.

Where ‖ĝ - g‖ ≤ ε, the angle between ĝ and g is at most arcsin(ε / ‖g‖). The same holds at an image x' of the ball with
noise of its own, where ‖g(x')‖ ≥ ⟨u, g(x')⟩ ≥ 2 Φ(Φ⁻¹((1 + ρ) / 2) - c) - 1. Three angles add up: ĝ(x) to g(x), g(x) to
g(x'), g(x') to ĝ(x').

**Continued draws.** Let N₀ be the number of samples planned before the first draw. An answer from at most N₀ samples
uses N = N₀. A later request for more samples may depend on answers from these draws, so its number is not fixed in
advance. The numbers N₀ 2, N₀ 4, N₀ 8, … are. With 3/4 of α' for N₀, which nearly all answers use, and α'/8, α'/16,
α'/32, … for the others, all these bounds hold together with 1 - α', and any of them may be picked.

Source: docs/guarantee.md sections 5 and 7; Pinelis, "Optimum bounds for the distributions of martingales in Banach
spaces", Annals of Probability 1994, Theorem 3.4 with D = 1.
"""

from __future__ import annotations

from typing import overload

import numpy as np

from fs_runtime.certificate.arguments import Array, apply_flat, confidence_value, norm_array, ratio_array, unit_array
from fs_runtime.certificate.closed_forms import ROUNDING, fcsb_values
from fs_runtime.certificate.tight_bound import tight_values

_LARGEST_DIFFERENCE = 2.0  # a
_SMALLEST_VARIANCE = 1e-12  # in place of v = 0, where h(a ε / v) is not defined; larger is safe
_NEWTON_STEPS = 6
_FIRST_SHARE = 0.75  # of α', for N₀; half of the rest goes to N₀ 2, half of what then remains to N₀ 4, and so on


def continued(planned: int, max_samples: int) -> tuple[int, float]:
    """``max_samples`` and ``share`` of ``served_similarity`` for draws that may be continued beyond the plan.

    Args:
        planned: N₀, the sample limit when the first sample was drawn.
        max_samples: The sample limit now.

    Returns:
        The ``max_samples`` to use, N₀ 2^j, and the share of α' that goes to it: 3/4 for j = 0, else 2^-(j + 2).

    Raises:
        ValueError: A number is below 1.

    Example:
        >>> continued(planned=256, max_samples=200), continued(planned=256, max_samples=1000)
        ((256, 0.75), (1024, 0.0625))
    """
    if planned < 1 or max_samples < 1:
        raise ValueError(f"planned and max_samples must be at least 1; got {planned} and {max_samples}")
    limit, share, left = planned, _FIRST_SHARE, 1 - _FIRST_SHARE
    while limit < max_samples:
        left /= 2
        limit, share = 2 * limit, left
    return limit, share


@overload
def served_similarity(  # type: ignore[overload-overlap]
    norm: float,
    radius: float,
    sigma: float,
    samples: int,
    confidence: float,
    max_samples: int | None = None,
    smoothed: float | None = None,
    share: float = 1.0,
) -> float: ...
@overload
def served_similarity(
    norm: float | Array,
    radius: float | Array,
    sigma: float | Array,
    samples: int,
    confidence: float,
    max_samples: int | None = None,
    smoothed: float | Array | None = None,
    share: float = 1.0,
) -> Array: ...
def served_similarity(
    norm: float | Array,
    radius: float | Array,
    sigma: float | Array,
    samples: int,
    confidence: float,
    max_samples: int | None = None,
    smoothed: float | Array | None = None,
    share: float = 1.0,
) -> float | Array:
    """Lower bound of cos(ĝ(x), ĝ(x')), the means over the samples that were drawn and over fresh ones at x'.

    It holds for one x' with ‖x' - x‖ ≤ r that does not depend on the draws and has its own noise and equally many
    samples. It is weaker than ``tight_similarity``, and approaches it as the number of samples grows.

    Args:
        norm: ρ, a lower bound of ‖g(x)‖, in [0, 1].
        radius: r, the ℓ2 size of the attack, in pixels of [0, 1].
        sigma: σ, the standard deviation of the noise, in the same unit.
        samples: n, samples in the mean, the first included.
        confidence: 1 - α' of the two deviations together, in (0, 1). If ``norm`` has the confidence 1 - α, the bound
            has 1 - α - α'.
        max_samples: N ≥ n, the sample limit, if n was chosen during sampling; ``samples`` if None.
        smoothed: A bound of cos(g(x), g(x')) that holds together with ``norm``, for example ``spectral_similarity``;
            ``tight_similarity`` if None.
        share: Share of α' for this bound, in (0, 1], if several bounds have to hold together with ``confidence``. It is
            a separate argument since 1 - α' share would be rounded.

    Returns:
        The bound, a float for floats; 0.0 for no certificate.

    Raises:
        ValueError: An argument is NaN or out of its range.

    Example:
        >>> round(served_similarity(norm=0.9, radius=0.125, sigma=0.25, samples=1024, confidence=0.999), 2)
        0.91
    """
    limit = samples if max_samples is None else max_samples
    if not 1 <= samples <= limit:
        raise ValueError(
            f"samples must be at least 1 and at most max_samples; got samples {samples}, max_samples {max_samples}"
        )
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    # Two events, each 2 exp(-…) ≤ share (1 - confidence) / 2.
    log_term = np.log(4 / (1 - confidence_value(confidence))) - np.log(share)

    def values(norm: Array, ratio: Array, smoothed: Array) -> Array:
        angle = np.arccos(np.where(np.isnan(smoothed), tight_values(norm, ratio), smoothed))
        for length in (norm, fcsb_values((1 - norm) / 2, ratio)):  # at x and at x'
            deviation = _largest_deviation(1 - length**2, log_term, limit) * (limit / samples)
            angle += np.where(
                deviation < length, np.arcsin(np.minimum(deviation / np.maximum(length, 1e-12), 1)), np.pi
            )
        return np.where(angle < np.pi / 2, np.maximum(np.cos(angle) - ROUNDING, 0.0), 0.0)

    start = np.asarray(np.nan) if smoothed is None else unit_array("smoothed", smoothed)
    return apply_flat(values, norm_array(norm), ratio_array(radius, sigma), start)


def _largest_deviation(variance: Array, log_term: float, samples: int) -> Array:
    """ε with (n v / a²) h(a ε / v) = log_term, by Newton's method from the right, where every step is a valid ε."""
    variance = np.maximum(variance, _SMALLEST_VARIANCE)
    target = log_term * _LARGEST_DIFFERENCE**2 / (samples * variance)
    u = target / 3 + np.sqrt(target**2 / 9 + 2 * target)  # Bernstein: h(u) ≥ u² / (2 + 2u / 3)
    for _ in range(_NEWTON_STEPS):
        u -= ((1 + u) * np.log1p(u) - u - target) / np.log1p(u)
    return np.asarray(u * variance / _LARGEST_DIFFERENCE)
