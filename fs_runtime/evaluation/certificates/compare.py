"""Compares our certificates with the paper's and others of the literature, at equal numbers of samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fs_runtime.certificate import (
    NormConfidenceSequence,
    SpreadConfidenceSequence,
    fcsb,
    score_from_norm,
    served_similarity,
    spectral_similarity,
    tight_similarity,
)
from fs_runtime.certificate.arguments import Array
from fs_runtime.evaluation.certificates.literature import (
    CENTER_SMOOTHING_FACTOR,
    EXACT_BALL_FACTOR,
    cdf_similarities,
    center_smoothing_angles,
    choose_centre,
    lipschitz_similarities,
)
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.spread_sketch import SpreadSketch

RATIOS = (0.25, 0.5, 1.0, 1.5)  # r / σ
PAPER = "FCSB, plug-in, no confidence"
OURS = "best of tight and spectral"

# The rows by name, with a description of each.
COMPARED_BOUNDS = {
    PAPER: "the paper as it computes it: an estimate",
    "FCSB": "the paper's formula with our confidence bound of ρ",
    "tight": "ours, from ρ alone",
    OURS: "ours",
    "best, served means": "ours, of the means of n samples, with confidence 1 - 2α",
    "Center Smoothing": "of the served centres; factor 3",
    "Center Smoothing, exact ball": "the same with factor 2, which cannot be computed",
    "Lipschitz": "Pautov et al. with our confidence bound of ρ",
    "CDF": "Kumar et al. 2020, to a fixed reference direction",
}
_BATCH = 32
_REFERENCE_SHARE = 32  # one sample in 32 chooses the reference direction of the CDF-based bound


@dataclass(frozen=True, slots=True)
class Row:
    """One bound at one number of samples and one radius.

    Attributes:
        psm: Whether purifier and mapper were used.
        bound: A key of :data:`COMPARED_BOUNDS`.
        samples: n, the number of all samples that the bound uses.
        ratio: r / σ.
        similarity: Mean over the images; an image without a certificate counts as 0.
        certified: Share of the images that have a certificate.
    """

    psm: bool
    bound: str
    samples: int
    ratio: float
    similarity: float
    certified: float


@dataclass(frozen=True, slots=True)
class Crossing:
    """Smallest tried n from which on our bound exceeds the paper's estimate; None if it does not at the largest n."""

    psm: bool
    ratio: float
    samples: int | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of the comparison, with its settings."""

    sigma: float
    confidence: float
    images: int
    rows: list[Row]
    crossings: list[Crossing]


def compare_certificates(
    smoothers: Sequence[tuple[bool, Smoother]],
    pictures: Sequence[NDArray[np.uint8]],
    *,
    sigma: float,
    confidence: float,
    counts: Sequence[int],
    advance: Callable[[int], None],
) -> Comparison:
    """Certifies each picture by every bound.

    Each picture is sampled once, up to the largest n; a smaller n uses the first samples.

    Args:
        smoothers: Models to compare on, each with a flag that says whether it has purifier and mapper.
        pictures: ``(H, W, 3)`` RGB pictures; k is the seed of the k-th one's draws.
        sigma: σ of the noise.
        confidence: 1 - α of each bound but the paper's.
        counts: Numbers of samples, rising, at least 16.
        advance: Called with the number of samples drawn since the last call.
    """
    alpha = 1 - confidence
    ratios = np.array(RATIOS)
    rows = []
    for psm, smoother in smoothers:
        tables = []
        for seed, pixels in enumerate(pictures):
            features = stacked_features(smoother, pixels, sigma, seed, counts[-1], advance)
            tables.append(certify_samples(features, counts, ratios, alpha))
        for count in counts:
            for bound in COMPARED_BOUNDS:
                values = np.stack([table[count][bound] for table in tables])  # (images, ratios)
                rows += [
                    Row(psm, bound, count, ratio, float(column.mean()), float((column > 0).mean()))
                    for ratio, column in zip(RATIOS, values.T, strict=True)
                ]
    return Comparison(sigma, confidence, len(pictures), rows, crossings_of(rows))


def stacked_features(
    smoother: Smoother,
    pixels: NDArray[np.uint8],
    sigma: float,
    seed: int,
    samples: int,
    advance: Callable[[int], None],
) -> torch.Tensor:
    """``(samples, T D)`` float32 unit vectors: the token features divided by √T, side by side."""
    state = smoother.start(smoother.encoder.prepare(pixels), sigma, seed)
    parts = []
    for start in range(0, samples, _BATCH):
        unit = smoother.draw(state, min(_BATCH, samples - start))  # (n, T, D)
        parts.append(unit.flatten(1).cpu() / unit.shape[1] ** 0.5)
        advance(len(unit))
    return torch.cat(parts)


def certify_samples(
    features: torch.Tensor, counts: Sequence[int], ratios: Array, alpha: float
) -> dict[int, dict[str, Array]]:
    """All bounds of one image from its first n features, by n of ``counts`` and by name: ``(len(ratios),)`` each."""
    gram = (features @ features.mT).double().numpy()
    before = np.tril(gram, -1).sum(axis=1)  # ⟨f_i, Σ of those before⟩
    squares = np.cumsum(2 * before + gram.diagonal())  # ‖Σ of the first i‖²
    inner_products = np.clip(before[1:] / np.sqrt(squares[:-1]), -1, 1)
    whole = NormConfidenceSequence(1 - alpha)
    half = NormConfidenceSequence(1 - alpha / 2)  # the other half of α goes to the spread
    spread = SpreadConfidenceSequence(1 - alpha / 2)
    sketch = SpreadSketch()
    total = torch.zeros_like(features[0])
    found = {}
    for count in counts:
        new = slice(whole.count, count - 1)
        whole.update(inner_products[new])
        half.update(inner_products[new])
        total = _observe(sketch, features, total, count)
        spread.observe(sketch.largest, sketch.count)
        norm = float(whole.lower)
        best = np.asarray(spectral_similarity(float(half.lower), spread.bound(), ratios, 1.0))
        reference = max(1, count // _REFERENCE_SHARE)
        direction = gram[reference:count, :reference].sum(axis=1) / np.sqrt(squares[reference - 1])
        angles = _centre_angles(gram[:count, :count], ratios, alpha)
        found[count] = {
            PAPER: np.asarray(fcsb(score_from_norm(min(float(np.sqrt(squares[count - 1])) / count, 1.0)), ratios, 1.0)),
            "FCSB": np.asarray(fcsb(score_from_norm(norm), ratios, 1.0)),
            "tight": np.asarray(tight_similarity(norm, ratios, 1.0)),
            OURS: best,
            "best, served means": np.asarray(
                served_similarity(float(half.lower), ratios, 1.0, count, 1 - alpha, count, best)
            ),
            "Center Smoothing": _cosine(CENTER_SMOOTHING_FACTOR * angles),
            "Center Smoothing, exact ball": _cosine(EXACT_BALL_FACTOR * angles),
            "Lipschitz": lipschitz_similarities(norm, ratios),
            "CDF": cdf_similarities(np.clip(direction, -1, 1), ratios, alpha),
        }
    return found


def crossings_of(rows: Sequence[Row]) -> list[Crossing]:
    """Where our bound starts to exceed the paper's estimate, for each model and radius."""
    found = {(row.psm, row.ratio, row.bound, row.samples): row.similarity for row in rows}
    counts = sorted({row.samples for row in rows}, reverse=True)
    crossings = []
    for psm, ratio in dict.fromkeys((row.psm, row.ratio) for row in rows):
        first = None
        for count in counts:
            if found[psm, ratio, OURS, count] <= found[psm, ratio, PAPER, count]:
                break
            first = count
        crossings.append(Crossing(psm, ratio, first))
    return crossings


def _observe(sketch: SpreadSketch, features: torch.Tensor, total: torch.Tensor, count: int) -> torch.Tensor:
    """Adds samples up to ``count`` to the sketch; ``total`` is the sum of earlier samples. Returns the new sum."""
    start = sketch.count + 1 if sketch.count else 0
    for first in range(start, count, _BATCH):
        block = features[first : min(first + _BATCH, count)]
        sums = total + block.cumsum(0)
        before = (sums - block) / torch.arange(first, first + len(block)).clamp_min(1)[:, None]
        deviations = block - before
        sketch.update(deviations if first else deviations[1:])  # the first sample has no mean before it
        total = sums[-1]
    return total


def _centre_angles(gram: Array, ratios: Array, alpha: float) -> Array:
    """Center Smoothing: the first half of the samples gives the centre, the second the distances."""
    centre_samples = len(gram) // 2
    weights = choose_centre(gram, centre_samples)
    cosines = np.clip(gram[centre_samples:, :centre_samples] @ weights, -1, 1)
    return center_smoothing_angles(np.arccos(cosines), ratios, centre_samples, alpha)


def _cosine(angles: Array) -> Array:
    """The cosine of each angle; 0.0, no certificate, for angles of 90 degrees and more."""
    return np.cos(np.minimum(angles, np.pi / 2)).clip(0.0) * (angles < np.pi / 2)
