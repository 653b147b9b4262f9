"""The noise pass: one image's samples in, running sums and inner products out (docs/guarantee.md sections 1, 4 and 5).

The direction that turns the norm of a vector mean into a scalar game is updated at every sample: sample i is
compared with the mean of samples 1 … i - 1, so only the first sample is spent on it, and a certificate does not
depend on how the samples were cut into batches. A Gram matrix per token does this for a whole batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fs_runtime.encoders.base import PreparedImage, VisionEncoder
from fs_runtime.noise import NoiseStream
from fs_runtime.psm import Mapper, Purifier


@dataclass(slots=True)
class SmoothingState:
    """Running sums of one image. All tensors are on the encoder's device; T tokens of width D.

    Attributes:
        image: The prepared image.
        x: ``(C, H, W)`` its pixels on the device.
        sigma: Standard deviation σ of the noise; 0 turns smoothing off.
        noise: The image's draws.
        count: Samples taken so far.
        feature_sum: ``(T, D)`` float32, Σ f_t over the samples; f_t is token t's unit feature.
        token_squares: ``(T,)`` float32, ‖feature_sum_t‖².
        length_sum: ``(T,)`` float32, Σ of the norms that the features had before they were made unit.
    """

    image: PreparedImage
    x: Tensor
    sigma: float
    noise: NoiseStream
    count: int = 0
    feature_sum: Tensor | None = None
    token_squares: Tensor | None = None
    length_sum: Tensor | None = None


@dataclass(frozen=True, slots=True)
class InnerProducts:
    """What the confidence sequence reads, for n new samples of one image.

    Attributes:
        image: ``(n,)`` float32, ⟨û, f⟩ of the stacked token features: the mean token cosine with the running mean.
        tokens: ``(n, T)`` float32, the same for each token by itself.

    Sample 1 has no predecessor and is left out: an image's first block holds one row less than its samples.
    """

    image: Tensor
    tokens: Tensor


@dataclass(frozen=True, slots=True)
class SmoothedFeatures:
    """The outcome for one image.

    Attributes:
        features: ``(T, D)`` float32: direction of the sample mean ĝ_t times the typical norm of token t (section 5).
        embeddings: ``(T', D')`` what the language model reads.
        norm_estimate: Plug-in estimate of ρ (no confidence); None for fewer than two samples.
        token_norm_estimates: ``(T,)`` the same for each token; None for fewer than two samples.
    """

    features: Tensor
    embeddings: Tensor
    norm_estimate: float | None
    token_norm_estimates: Tensor | None


class Smoother:
    """Runs noisy copies through purifier, encoder and mapper, and keeps the sums of each image.

    Args:
        encoder: The vision part.
        purifier: Denoiser before the encoder; None for none.
        mapper: Residual network after the encoder; None for none.
    """

    def __init__(self, encoder: VisionEncoder, purifier: Purifier | None = None, mapper: Mapper | None = None) -> None:
        self.encoder = encoder
        self.purifier = purifier
        self.mapper = mapper

    def start(self, image: PreparedImage, sigma: float, seed: int) -> SmoothingState:
        """Begins an image: its pixels go to the device, no sample is drawn.

        Args:
            image: From :meth:`VisionEncoder.prepare`.
            sigma: Standard deviation of the noise in pixels of [0, 1].
            seed: Of the image's draws.
        """
        device = self.encoder.device
        return SmoothingState(image, image.pixels.to(device), sigma, NoiseStream(seed, device))

    @torch.inference_mode()
    def step(self, parts: Sequence[tuple[SmoothingState, int]]) -> list[InnerProducts]:
        """Draws samples for several images in one batch and adds them to their sums.

        Args:
            parts: Pairs of an image and how many samples to draw for it. All images have one shape and one grid,
                and either all have σ = 0 or none has.

        Returns:
            The new inner products of each image, on the device.

        When the encoder fails, for example for want of memory, the images stand as before, draws included.
        """
        positions = [state.noise.position() for state, _ in parts]
        try:
            x, sigma = self._noisy_copies(parts)
            features = self._features(x, sigma, parts[0][0]).float()  # (B, T, D)
        except Exception:
            for (state, _), position in zip(parts, positions, strict=True):
                state.noise.rewind(position)
            raise
        lengths = torch.linalg.vector_norm(features, dim=-1)  # (B, T)
        unit = features / lengths.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1)
        counts = [count for _, count in parts]
        return [
            _accumulate(state, unit_part, lengths_part)
            for (state, _), unit_part, lengths_part in zip(
                parts, unit.split(counts), lengths.split(counts), strict=True
            )
        ]

    @torch.inference_mode()
    def finish(self, state: SmoothingState) -> SmoothedFeatures:
        """Mean direction, typical norm, projection and the plug-in estimate of ρ.

        Raises:
            ValueError: No sample was drawn, or the encoder returned values that are not finite.
        """
        if state.feature_sum is None or state.token_squares is None or state.length_sum is None:
            raise ValueError("no sample was drawn yet")
        if not bool(torch.isfinite(state.feature_sum).all() & torch.isfinite(state.length_sum).all()):
            raise ValueError("the vision encoder returned values that are not finite for this image")
        n = state.count
        direction = torch.nn.functional.normalize(state.feature_sum, dim=-1)
        features = direction * (state.length_sum / n).unsqueeze(-1)
        embeddings = self.encoder.project(features, state.image.grid)
        if n < 2:
            return SmoothedFeatures(features, embeddings, None, None)
        image_norm = _norm_estimate(state.token_squares.mean(), n)
        return SmoothedFeatures(features, embeddings, float(image_norm), _norm_estimate(state.token_squares, n))

    def _noisy_copies(self, parts: Sequence[tuple[SmoothingState, int]]) -> tuple[Tensor, Tensor]:
        """Noisy copies ``(B, C, H, W)`` and the noise level ``(B,)`` of each."""
        device = self.encoder.device
        batch = sum(count for _, count in parts)
        x = torch.empty((batch, *parts[0][0].x.shape), device=device)
        start = 0
        for state, count in parts:
            copies = x[start : start + count]
            if state.sigma > 0:
                state.noise.draw(copies)
                torch.add(state.x, copies, alpha=state.sigma, out=copies)
            else:
                copies.copy_(state.x)
            start += count
        levels = torch.tensor([state.sigma for state, _ in parts], device=device)
        return x, levels.repeat_interleave(torch.tensor([count for _, count in parts], device=device))

    def _features(self, x: Tensor, sigma: Tensor, first: SmoothingState) -> Tensor:
        plain = first.sigma == 0  # nothing to purify
        if self.purifier is not None and not plain:
            x = self.purifier(x, sigma)
        features = self.encoder.encode(x)
        if self.mapper is not None and not plain:
            features = self.mapper(features, sigma, first.image.grid)
        return features


def _accumulate(state: SmoothingState, unit: Tensor, lengths: Tensor) -> InnerProducts:
    """Adds n samples, ``unit`` ``(n, T, D)`` and ``lengths`` ``(n, T)``, to an image's sums.

    With S the sum of the samples before sample i, ⟨f_i, S⟩ and ‖S‖² follow from the old sum and the Gram matrix of
    the new samples; X_i = ⟨f_i, S⟩ / ‖S‖. The stacked feature of the image is the tokens' divided by √T, so its
    inner products are means over tokens.
    """
    by_token = unit.transpose(0, 1)  # (T, n, D)
    gram = by_token @ by_token.mT  # (T, n, n)
    products = gram.tril(-1).sum(-1)  # (T, n): ⟨f_i, Σ of the new samples before i⟩
    own = gram.diagonal(dim1=1, dim2=2)  # (T, n): ‖f_i‖²
    if state.feature_sum is None or state.token_squares is None or state.length_sum is None:
        state.feature_sum = torch.zeros_like(unit[0])
        state.length_sum = torch.zeros_like(lengths[0])
        state.token_squares = torch.zeros_like(lengths[0])
    else:
        products = products + (by_token @ state.feature_sum.unsqueeze(-1)).squeeze(-1)
    growth = 2 * products + own
    squares = state.token_squares.unsqueeze(-1) + growth.cumsum(-1) - growth  # (T, n): ‖S_t‖² before sample i
    skip = int(state.count == 0)
    products, squares = products[:, skip:], squares[:, skip:].clamp_min(torch.finfo(torch.float32).tiny)
    result = InnerProducts(
        image=(products.mean(0) / squares.mean(0).sqrt()).clamp(-1, 1),
        tokens=(products / squares.sqrt()).clamp(-1, 1).mT,
    )
    state.feature_sum += unit.sum(0)
    state.token_squares = state.feature_sum.square().sum(-1)
    state.length_sum += lengths.sum(0)
    state.count += unit.shape[0]
    return result


def _norm_estimate(square: Tensor, n: int) -> Tensor:
    """Estimate of ρ from ‖Σ f‖² of n unit vectors: E‖Σ f‖² = n + n (n - 1) ρ²."""
    return ((square - n) / (n * (n - 1))).clamp(0, 1).sqrt()
