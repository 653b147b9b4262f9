"""The running sums of one image, and their update by new samples (docs/guarantee.md sections 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fs_runtime.encoders.base import PreparedImage
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES, FeatureMap
from fs_runtime.smoothing.noise import NoiseStream
from fs_runtime.smoothing.spread_sketch import SpreadSketch


@dataclass(slots=True)
class SmoothingState:
    """Running sums of one image. All tensors are on the encoder's device; T tokens of width D.

    Attributes:
        image: The prepared image.
        x: ``(C, H, W)``, or ``(N, C, H, W)`` for tiles, its pixels on the device.
        sigma: Standard deviation σ of the noise; 0 turns smoothing off.
        noise: The image's draws.
        feature_map: Which f is smoothed.
        sketch: Bounds the features' spread; None if it is not wanted.
        clean: ``(T, D)`` unit features of the image without noise, purifier and mapper, which samples are compared
            with for fidelity; None before the first sample, and without noise.
        keeps_copies: Whether the newest samples' input of the language model is kept in ``copies``.
        copies: ``(n, T', D')`` that of the samples of the latest step; None if it is not kept.
        count: Samples taken so far.
        feature_sum: ``(T, D)`` float32, Σ f_t over the samples; f_t is token t's unit feature.
        token_squares: ``(T,)`` float32, ‖feature_sum_t‖².
        length_sum: ``(T,)`` float32, Σ of the features' norms before normalisation.
    """

    image: PreparedImage
    x: Tensor
    sigma: float
    noise: NoiseStream
    feature_map: FeatureMap = ENCODER_FEATURES
    sketch: SpreadSketch | None = None
    clean: Tensor | None = None
    keeps_copies: bool = False
    copies: Tensor | None = None
    count: int = 0
    feature_sum: Tensor | None = None
    token_squares: Tensor | None = None
    length_sum: Tensor | None = None


@dataclass(frozen=True, slots=True)
class InnerProducts:
    """Input of the confidence sequence: inner products of n new samples of one image.

    Attributes:
        image: ``(n,)`` float32, ⟨û, f⟩ of the stacked token features: the mean token cosine with the running mean.
        tokens: ``(n, T)`` float32, the same for each token by itself.
        clean: ``(n,)`` float32, ⟨f, f₀⟩ with the clean features f₀, for all samples; None where there are none.

    Sample 1 has no predecessor and is left out of the first two: an image's first block has one row fewer than it has
    samples.
    """

    image: Tensor
    tokens: Tensor
    clean: Tensor | None


@dataclass(frozen=True, slots=True)
class SmoothedFeatures:
    """Result of smoothing one image.

    Attributes:
        features: ``(T, D)`` float32 at the certified stage: direction of the sample mean ĝ_t times the typical norm
            of token t (section 5), plus the centre if the features were centred.
        embeddings: ``(T', D')`` input of the language model.
        norm_estimate: Plug-in estimate of ρ (no confidence); None for fewer than two samples.
        token_norm_estimates: ``(T,)`` the same for each token; None for fewer than two samples.
        fidelity: Cosine of the sample mean with the clean features, both stacked; None without noise.
        token_fidelity: ``(T,)`` the same for each token; None without noise.
    """

    features: Tensor
    embeddings: Tensor
    norm_estimate: float | None
    token_norm_estimates: Tensor | None
    fidelity: float | None
    token_fidelity: Tensor | None


@dataclass(frozen=True, slots=True)
class SumsUpdate:
    """An image's sums after n more samples; computed in full before the image changes."""

    products: InnerProducts
    feature_sum: Tensor
    token_squares: Tensor
    length_sum: Tensor
    count: int
    deviations: Tensor | None


def sums_update(state: SmoothingState, unit: Tensor, lengths: Tensor) -> SumsUpdate:
    """The sums after n further samples, ``unit`` ``(n, T, D)`` and ``lengths`` ``(n, T)``.

    With S the sum of the samples before sample i, ⟨f_i, S⟩ and ‖S‖² follow from the old sum and the Gram matrix of
    the new samples; X_i = ⟨f_i, S⟩ / ‖S‖. The stacked feature of the image is the tokens' divided by √T, so its
    inner products are means over tokens.
    """
    by_token = unit.transpose(0, 1)  # (T, n, D)
    gram = by_token @ by_token.mT  # (T, n, n)
    products = gram.tril(-1).sum(-1)  # (T, n): ⟨f_i, Σ of the new samples before i⟩
    own = gram.diagonal(dim1=1, dim2=2)  # (T, n): ‖f_i‖²
    feature_sum, length_sum = unit.sum(0), lengths.sum(0)
    token_squares = torch.zeros_like(lengths[0])
    if state.feature_sum is not None and state.token_squares is not None and state.length_sum is not None:
        products = products + (by_token @ state.feature_sum.unsqueeze(-1)).squeeze(-1)
        feature_sum, length_sum = state.feature_sum + feature_sum, state.length_sum + length_sum
        token_squares = state.token_squares
    growth = 2 * products + own
    squares = token_squares.unsqueeze(-1) + growth.cumsum(-1) - growth  # (T, n): ‖S_t‖² before sample i
    skip = int(state.count == 0)
    products, squares = products[:, skip:], squares[:, skip:].clamp_min(torch.finfo(torch.float32).tiny)
    return SumsUpdate(
        products=InnerProducts(
            image=(products.mean(0) / squares.mean(0).sqrt()).clamp(-1, 1),
            tokens=(products / squares.sqrt()).clamp(-1, 1).mT,
            clean=None if state.clean is None else (unit * state.clean).sum(-1).mean(-1).clamp(-1, 1),
        ),
        feature_sum=feature_sum,
        token_squares=feature_sum.square().sum(-1),
        length_sum=length_sum,
        count=state.count + unit.shape[0],
        deviations=_deviations(state, unit) if state.sketch is not None else None,
    )


def apply_update(state: SmoothingState, update: SumsUpdate) -> None:
    """Replaces an image's sums by the updated ones. If the sketch runs out of memory, the image continues without."""
    state.feature_sum = update.feature_sum
    state.token_squares = update.token_squares
    state.length_sum = update.length_sum
    state.count = update.count
    if state.sketch is not None and update.deviations is not None:
        try:
            state.sketch.update(update.deviations)
        except RuntimeError:  # out of memory, or the eigenvalues did not converge: ρ alone still certifies
            state.sketch = None


def _deviations(state: SmoothingState, unit: Tensor) -> Tensor:
    """Stacked features ``(n, T D)`` minus the mean of the samples before each; sample 1 has none and is left out."""
    skip = int(state.count == 0)
    before = unit.cumsum(0).sub_(unit)
    if state.feature_sum is not None:
        before += state.feature_sum
    counts = torch.arange(state.count + skip, state.count + unit.shape[0], device=unit.device)
    tokens = unit.shape[1]
    stacked: Tensor = (unit[skip:] - before[skip:] / counts.view(-1, 1, 1)) / float(tokens) ** 0.5
    return stacked.flatten(1)


def norm_estimate(square: Tensor, n: int) -> Tensor:
    """Estimate of ρ from ‖Σ f‖² of n unit vectors: E‖Σ f‖² = n + n (n - 1) ρ²."""
    return ((square - n) / (n * (n - 1))).clamp(0, 1).sqrt()
