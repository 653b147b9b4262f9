"""An attack on the certificate itself: how low can cos(g(x), g(x')) become inside the ball?

For each image and radius, projected gradient steps inside the ℓ2 ball lower cos(g(x), g(x')) on fixed draws. The
similarity that they reach is then estimated on fresh draws and compared with the certified bound (docs/guarantee.md
section 3). A similarity below the bound by more than sampling error would disprove the certificate, or its code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fs_runtime.attacks.methods import Attack, run_attack
from fs_runtime.attacks.pipeline import FeaturePipeline
from fs_runtime.attacks.similarity import stacked_cosine
from fs_runtime.attacks.threat_model import ThreatModel
from fs_runtime.certificate import (
    NormConfidenceSequence,
    Spread,
    SpreadConfidenceSequence,
    fcsb,
    score_from_norm,
    spectral_similarity,
    tight_similarity,
)
from fs_runtime.encoders import PreparedImage
from fs_runtime.rounding import alpha_of, confidence_of
from fs_runtime.smoothing.smoother import Smoother

_GROUPS = 16  # of the jackknife
_ERRORS = 3.0  # standard errors below the bound that count as sampling error


@dataclass(frozen=True, slots=True)
class CertificateAttackResult:
    """Certified similarity and the one that the attack reached, for one image and radius; image granularity.

    Attributes:
        image: Index of the image.
        radius: ℓ2 radius r of the ball, in pixels of [0, 1].
        sigma: Standard deviation of the noise, in the same unit.
        norm_lower: Lower confidence bound of ρ.
        norm_estimate: Plug-in estimate of ρ.
        certified: The certified similarity: the spectral bound, as served; 0 for none.
        tight: The bound from ρ alone; 0 for none.
        fcsb: The paper's bound from the same ρ; 0 for none.
        at_estimate: The spectral bound at plug-in values, its limit for many samples. Not certified.
        reached: The lowest similarity that the attack found, estimated on fresh draws.
        standard_error: Of ``reached``.
        holds: Whether ``reached`` is at least ``certified`` up to three standard errors.
    """

    image: int
    radius: float
    sigma: float
    norm_lower: float
    norm_estimate: float
    certified: float
    tight: float
    fcsb: float
    at_estimate: float
    reached: float
    standard_error: float
    holds: bool


def attack_certificate(
    smoother: Smoother,
    images: Sequence[PreparedImage],
    sigma: float,
    radii: Sequence[float],
    *,
    draws: int = 64,
    steps: int = 20,
    restarts: int = 2,
    samples: int = 1024,
    confidence: float = 0.999,
    seed: int = 0,
    batch_size: int = 64,
    report: Callable[[], None] | None = None,
) -> list[CertificateAttackResult]:
    """Attacks the certificate of each image at each radius.

    Args:
        smoother: The model.
        images: Prepared images of one shape.
        sigma: σ, positive.
        radii: ℓ2 radii, in pixels of [0, 1].
        draws: Noisy copies that the attack averages over, with the same noise at every step and at x and x'.
        steps: Gradient steps of each restart.
        restarts: Random starts, of which the lowest is kept.
        samples: Noisy copies for ρ, and as many fresh ones for the reported similarity; at least 64.
        confidence: 1 - α of the certificate.
        seed: Of all draws.
        batch_size: Most noisy copies in one pass.
        report: Called after every gradient step on the batch.

    Raises:
        ValueError: There is no image, σ is not positive, or there are too few samples.
    """
    if not images:
        raise ValueError("give at least one image to attack")
    if sigma <= 0:
        raise ValueError(f"sigma must be positive for a smoothed model; got {sigma}")
    if samples < 4 * _GROUPS:
        raise ValueError(f"samples must be at least {4 * _GROUPS}; got {samples}")
    x = torch.stack([image.pixels for image in images]).to(smoother.encoder.device)
    bounds_and_estimates = [
        _bounds_and_estimates(smoother, image, sigma, samples, confidence, seed + i, batch_size)
        for i, image in enumerate(images)
    ]
    pipeline = FeaturePipeline(
        smoother, sigma, images[0].grid, draws=draws, seed=seed + 1_000_003, fixed=True, batch_size=batch_size
    )
    attack = Attack("certificate", False, _negative_cosine, steps=steps, restarts=restarts)
    results = []
    for radius in radii:
        found = run_attack(attack, [pipeline], x, ThreatModel("l2", radius), seed=seed, report=report)
        for i, ((lower, spread), (estimate, spread_estimate)) in enumerate(bounds_and_estimates):
            reached, error = smoothed_similarity(
                pipeline.with_options(fixed=False), x[i], found[i], samples, seed=seed + 2_000_003 + i
            )
            certified = float(spectral_similarity(lower, spread, radius, sigma))
            results.append(
                CertificateAttackResult(
                    image=i,
                    radius=radius,
                    sigma=sigma,
                    norm_lower=lower,
                    norm_estimate=estimate,
                    certified=certified,
                    tight=tight_similarity(lower, radius, sigma),
                    fcsb=fcsb(score_from_norm(lower), radius, sigma),
                    at_estimate=float(spectral_similarity(estimate, spread_estimate, radius, sigma)),
                    reached=reached,
                    standard_error=error,
                    holds=reached + _ERRORS * error >= certified,
                )
            )
    return results


@torch.no_grad()
def smoothed_similarity(
    pipeline: FeaturePipeline, x: Tensor, other: Tensor, samples: int, *, seed: int
) -> tuple[float, float]:
    """Estimate of cos(g(x), g(x')) and its standard error, from the same draws at both images.

    Products of a draw with itself are left out, so that ⟨g, g'⟩ and both norms are unbiased (U-statistics). The error
    is a jackknife over 16 groups of draws.

    Args:
        pipeline: The model and σ; its number of draws does not matter.
        x: ``(C, H, W)``.
        other: ``(C, H, W)`` the image x'.
        samples: Draws, at least 32.
        seed: Of the draws.
    """
    pair = torch.stack((x, other))
    sums, diagonals, counts = [], [], []
    for group, count in enumerate(_parts(samples, _GROUPS)):
        features = _unit_features(pipeline, pair, count, seed + 1000 * group)  # (2, count, T·D)
        sums.append(features.sum(dim=1).double())
        diagonals.append((features[0] * features[1]).sum().double())
        counts.append(count)
    totals, diagonal = torch.stack(sums), torch.stack(diagonals)  # (G, 2, T·D), (G,)

    def cosine(without: int | None) -> float:
        kept = [group for group in range(_GROUPS) if group != without]
        first, second = totals[kept].sum(dim=0)
        n = sum(counts[group] for group in kept)
        product = first @ second - diagonal[kept].sum()
        norms = (first @ first - n) * (second @ second - n)
        return float(product / norms.clamp_min(1e-12).sqrt())

    left_out = np.array([cosine(group) for group in range(_GROUPS)])
    error = math.sqrt((_GROUPS - 1) / _GROUPS * float(((left_out - left_out.mean()) ** 2).sum()))
    return cosine(None), error


def _negative_cosine(features: Tensor, reference: Tensor) -> Tensor:
    return -stacked_cosine(features, reference)


def _bounds_and_estimates(
    smoother: Smoother, image: PreparedImage, sigma: float, samples: int, confidence: float, seed: int, batch_size: int
) -> tuple[tuple[float, Spread], tuple[float, Spread]]:
    """Confidence bounds of ρ and of the spread, with half of α each, and plug-in estimates of both."""
    state = smoother.start(image, sigma, seed, spectral=True)
    each = confidence_of(alpha_of(confidence) / 2)
    norm, spread = NormConfidenceSequence(each), SpreadConfidenceSequence(each)
    while state.count < samples:
        (products,) = smoother.step([(state, min(batch_size, samples - state.count))])
        norm.update(products.image.double().cpu().numpy())
    assert state.sketch is not None  # noqa: S101 (asked for above)
    observed = state.sketch.largest
    spread.observe(observed, state.sketch.count)
    estimate = smoother.finish(state).norm_estimate
    plug_in = (0.0 if estimate is None else estimate, Spread(min(observed, 1.0), min(observed, 4.0)))
    return (float(norm.lower), spread.bound()), plug_in


def _unit_features(pipeline: FeaturePipeline, pair: Tensor, count: int, seed: int) -> Tensor:
    """``(2, count, T·D)`` stacked unit features of two images under the same noise."""
    parts = []
    generator = torch.Generator(pair.device).manual_seed(seed)
    for size in _batches(count, max(1, pipeline.batch_size // 2)):
        noise = torch.empty((size, *pair.shape[1:]), device=pair.device).normal_(generator=generator)
        noisy = (pair.unsqueeze(1) + pipeline.sigma * noise).flatten(0, 1)  # (2·size, C, H, W)
        features = pipeline.unit_features(noisy)
        parts.append((features / math.sqrt(features.shape[1])).reshape(2, size, -1))
    return torch.cat(parts, dim=1)


def _parts(total: int, groups: int) -> list[int]:
    return [total // groups + (group < total % groups) for group in range(groups)]


def _batches(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)
