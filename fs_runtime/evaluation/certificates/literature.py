"""Certificates of the literature, for comparison with ours: Center Smoothing, Lipschitz embeddings, CDF-based bounds.

Each uses its best valid setting, which its docstring states. c = r / σ; a value of 0.0 means "no certificate".

Source: docs/guarantee.md section 9.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betainc, betaincinv, ndtr, ndtri

from fs_runtime.certificate.arguments import Array

# Multiplied by R, they bound the angle between two centres (`center_smoothing_angles`).
CENTER_SMOOTHING_FACTOR = 3.0
EXACT_BALL_FACTOR = 2.0


def lipschitz_similarities(norm: float, ratios: Array) -> Array:
    """Lower bounds of cos(g(x), g(x')) from ρ and a bound of ‖g(x) - g(x')‖.

    Pautov et al. bound ‖g(x) - g(x')‖ by sqrt(2 / π) c for unit features. We use the tighter 2 (2 Φ(c / 2) - 1), whose
    tangent this is: ⟨v, g(x) - g(x')⟩ is at most the L1 distance of the two Gaussians. A vector within ε of one
    of length ρ is at an angle of at most arcsin(ε / ρ) to it.

    Args:
        norm: ρ, or a lower bound of it, whose confidence the result inherits.
        ratios: ``(k,)`` values of c.

    Source: Pautov et al., "Smoothed Embeddings for Certified Few-Shot Learning", NeurIPS 2022.
    """
    reach = 2 * (2 * ndtr(ratios / 2) - 1)
    sine = np.minimum(reach, norm) / max(norm, np.finfo(float).tiny)
    return np.where(reach < norm, np.sqrt(1 - sine**2), 0.0)


def cdf_similarities(inner_products: Array, ratios: Array, alpha: float) -> Array:
    """Lower bounds of ⟨u, g(x')⟩, and so of cos(u, g(x')), from the distribution of ⟨u, f⟩.

    Under attack P(⟨u, f⟩ ≥ t) is at least Φ(Φ⁻¹(p(t)) - c) where p(t) bounds it without attack; integrated over t this
    bounds the mean. p is the empirical survival function less sqrt(log(1/α) / 2m), which holds at every t at once
    (Dvoretzky, Kiefer and Wolfowitz with Massart's constant).

    Args:
        inner_products: ``(m,)`` of ⟨u, f_i⟩ in [-1, 1], with u fixed before these samples.
        ratios: ``(k,)`` values of c.
        alpha: Probability that a bound is wrong, at most 1/2.

    Source: Kumar et al., "Certifying Confidence via Randomized Smoothing", NeurIPS 2020.
    """
    values = np.sort(inner_products)
    m = len(values)
    steps = np.diff(values, prepend=-1.0)
    survival = np.clip(1 - np.arange(m) / m - np.sqrt(np.log(1 / alpha) / (2 * m)), 0, 1)
    shifted = ndtr(ndtri(survival) - ratios[:, None])  # (k, m)
    return np.asarray(np.maximum(shifted @ steps - 1, 0.0))


def choose_centre(gram: Array, samples: int) -> Array:
    """Weights ``(samples,)`` of a unit vector Σ w_i f_i around which a small ball holds half of the first samples.

    Candidates are the samples and the direction of their mean, and the smallest ball wins. It is at most twice the
    smallest ball around any point, since around a sample inside that one, twice its radius is enough.

    Args:
        gram: Inner products of the unit features, at least the first ``samples`` of them.
        samples: Number of first samples that choose the centre.
    """
    inner = gram[:samples, :samples]
    weights = np.ones(samples) / np.sqrt(max(inner.sum(), np.finfo(float).tiny))
    candidates = np.vstack([inner, weights @ inner])  # cosines of each candidate to each sample
    half = -(-samples // 2)
    reach = -np.sort(-candidates, axis=1)[:, half - 1]  # cosine of the ball that holds half
    best = int(np.argmax(reach))
    return np.asarray(weights if best == samples else np.eye(samples)[best])


def center_smoothing_angles(distances: Array, ratios: Array, centre_samples: int, alpha: float) -> Array:
    """R, in radians: a bound of the angle between the centres served for x and for x' is 3 R.

    z, the centre of x, comes from n₀ samples, ``distances`` from m fresh ones. With p₀ such that a ball of mass p₀
    holds more than half of n₀ samples with probability 1 - α/2, the ball of radius R around z has, with probability
    1 - α/2, mass Φ(Φ⁻¹(p₀) + c) at x, and thus p₀ at x'. There z', the centre of n₀ samples of x', has a ball with at
    least half of them, of at most twice the smallest such radius, hence of at most 2 R. Both balls share a sample:
    the angle is at most R + 2 R. Multiply the result by :data:`CENTER_SMOOTHING_FACTOR`; with the centres of
    exactly smallest balls, which cannot be computed in high dimension, it would be :data:`EXACT_BALL_FACTOR`.

    The authors use Hoeffding's inequality for both probabilities and a fixed Δ = 0.05 in p₀ = 1/2 + Δ; binomial
    tails are used here, which need fewer samples.

    Args:
        distances: ``(m,)`` angles between z and the fresh samples.
        ratios: ``(k,)`` values of c.
        centre_samples: n₀.
        alpha: Probability that the statement about x and one x' is wrong.

    Returns:
        ``(k,)`` values of R, infinite where the samples are too few.

    Source: Kumar and Goldstein, "Center Smoothing: Certified Robustness for Networks with Structured Outputs",
    NeurIPS 2021.
    """
    more_than_half = centre_samples // 2 + 1
    majority = betaincinv(more_than_half, centre_samples - more_than_half + 1, 1 - alpha / 2)  # p₀
    needed = ndtr(ndtri(majority) + ratios)
    m = len(distances)
    order = np.arange(1, m + 1)
    # The mass within the k-th smallest distance is below p with a probability of at most P(Binomial(m, p) ≥ k).
    wrong = betainc(order, m - order + 1, needed[:, None])  # (k, m)
    enough = wrong <= alpha / 2
    sorted_distances = np.sort(distances)
    return np.where(enough.any(axis=1), sorted_distances[np.argmax(enough, axis=1)], np.inf)
