"""The noise pass: one image's samples in, running sums and inner products out (docs/guarantee.md sections 1, 4 and 5).

The direction that turns the norm of a vector mean into a scalar game is updated at every sample: sample i is
compared with the mean of samples 1 … i - 1, so only the first sample is spent on it, and a certificate does not
depend on how the samples were cut into batches. A Gram matrix per token does this for a whole batch at once.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.options import DEFAULT_SIGMA, CompileMode, sigma_value
from fs_runtime.psm import Mapper, PsmFacts, Purifier
from fs_runtime.smoothing.compilation import CompiledNetworks
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES, FeatureMap
from fs_runtime.smoothing.feature_statistics import FeatureStatistics
from fs_runtime.smoothing.noise import NOISE_VERSION, NoiseStream
from fs_runtime.smoothing.spread_sketch import SpreadSketch
from fs_runtime.smoothing.sums import (
    InnerProducts,
    SmoothedFeatures,
    SmoothingState,
    apply_update,
    norm_estimate,
    sums_update,
)


class Smoother:
    """Runs noisy copies through purifier, encoder and mapper, and keeps the sums of each image.

    Args:
        encoder: The model's vision encoder.
        purifier: Denoiser before the encoder; None for none.
        mapper: Residual network after the encoder; None for none.
        sigma: Default noise level, which suits purifier and mapper.
        statistics: Mean feature and floor of a reference set; None if the model has none.
        psm: Facts about purifier and mapper that answers report; None if nothing is known.

    Attributes:
        psm_sigma: ``sigma`` as it was given: the default before feature statistics are asked.
        compiled: The networks after :meth:`compile`; None while they run eagerly.
        noise_version: Of the draws that are made from a seed.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        purifier: Purifier | None = None,
        mapper: Mapper | None = None,
        sigma: float = DEFAULT_SIGMA,
        statistics: FeatureStatistics | None = None,
        psm: PsmFacts | None = None,
    ) -> None:
        self.encoder = encoder
        self.purifier = purifier
        self.mapper = mapper
        self.statistics = statistics
        self.psm = psm
        self.sigma = self.psm_sigma = sigma
        self.compiled: CompiledNetworks | None = None
        self.noise_version = NOISE_VERSION

    def with_noise(self, version: int) -> Self:
        """The same networks with the draws of a version, for the replay of receipts."""
        other = copy.copy(self)
        other.noise_version = version
        return other

    def sigma_for(self, sigma: float | None) -> float:
        """The noise level σ: ``sigma`` if it is given, else the model's default."""
        return self.sigma if sigma is None else sigma

    def compile(self, mode: CompileMode, shape: Sequence[int], largest: int) -> None:
        """Compiles the networks, at their first use, for noisy images or tiles of one shape.

        Batches with gradients, without noise or of another shape still run eagerly (:class:`CompiledNetworks`).

        Args:
            mode: Of ``torch.compile``.
            shape: ``(C, H, W)``.
            largest: Rows of the largest batch.
        """
        self.compiled = CompiledNetworks(self._networks, mode, shape, largest)

    def features(self, x: Tensor, sigma: Tensor, grid: Grid, *, noisy: bool) -> Tensor:
        """Purifier, encoder and mapper, each where there is one; differentiable in ``x`` if they are.

        Args:
            x: ``(B, C, H, W)`` pixels, noise included, or ``(B, N, C, H, W)`` tiles, which are encoded separately.
            sigma: ``(B,)`` noise levels.
            grid: Of the tokens.
            noisy: Whether noise was added; without noise, purifier and mapper are skipped.

        Returns:
            ``(B, T, D)`` token features, not normalised.
        """
        if x.dim() == 5:
            tiles = x.shape[1]
            by_tile = self._features(x.flatten(0, 1), sigma.repeat_interleave(tiles), grid, noisy)
            return self.encoder.assemble(by_tile.view(-1, tiles, *by_tile.shape[1:]), grid)
        return self._features(x, sigma, grid, noisy)

    def _features(self, x: Tensor, sigma: Tensor, grid: Grid, noisy: bool) -> Tensor:
        """:meth:`features` for ``(B, C, H, W)`` images or tiles."""
        rows_and_columns = (grid[0], grid[1])
        if self.compiled is not None and noisy and self.compiled.accepts(x):
            return self.compiled(x, sigma, rows_and_columns)
        return self._networks(x, sigma, rows_and_columns, noisy)

    def _networks(self, x: Tensor, sigma: Tensor, grid: tuple[int, int], noisy: bool) -> Tensor:
        """The networks without compilation."""
        if self.purifier is not None and noisy:
            x = self.purifier(x, sigma)
        features = self.encoder.encode(x)
        if self.mapper is not None and noisy:
            features = self.mapper(features, sigma, grid)
        return features

    def start(
        self,
        image: PreparedImage,
        sigma: float,
        seed: int,
        feature_map: FeatureMap = ENCODER_FEATURES,
        *,
        spectral: bool = False,
    ) -> SmoothingState:
        """Starts an image: moves its pixels to the device, and draws no sample yet.

        Args:
            image: From :meth:`VisionEncoder.prepare`.
            sigma: Standard deviation of the noise in pixels of [0, 1].
            seed: Of the image's draws.
            feature_map: Which f is smoothed.
            spectral: Whether to keep a sketch of the features' spread.

        Raises:
            ValueError: σ is too small for Gaussian noise in float32, or centred features were asked for and the model
                has no feature statistics.
        """
        sigma_value(sigma)
        if feature_map.centred and self.statistics is None:
            raise ValueError("centred features need the model's feature statistics, and it has none")
        device = self.encoder.device
        noise = NoiseStream(seed, device, self.noise_version)
        sketch = SpreadSketch() if spectral and sigma > 0 else None
        return SmoothingState(image, image.pixels.to(device), sigma, noise, feature_map, sketch)

    @torch.inference_mode()
    def step(self, parts: Sequence[tuple[SmoothingState, int]]) -> list[InnerProducts]:
        """Draws samples for several images in one batch and adds them to their sums.

        Args:
            parts: Pairs of an image and how many samples to draw for it. All images have one shape, one grid and one
                feature map, and either all have σ = 0 or none has.

        Returns:
            The new inner products of each image, on the device.

        If it fails, for example because memory runs out, no image changes, and their noise streams are rewound.
        """
        positions = [state.noise.position() for state, _ in parts]
        self._add_clean_features([state for state, _ in parts if state.clean is None and state.sigma > 0])
        unit, lengths = self._unit_features(parts)
        counts = [count for _, count in parts]
        try:
            updates = [
                sums_update(state, unit_part, lengths_part)
                for (state, _), unit_part, lengths_part in zip(
                    parts, torch.split(unit, counts), torch.split(lengths, counts), strict=True
                )
            ]
        except Exception:
            for (state, _), position in zip(parts, positions, strict=True):
                state.noise.rewind(position)
            raise
        for (state, _), update in zip(parts, updates, strict=True):
            apply_update(state, update)
        return [update.products for update in updates]

    @torch.inference_mode()
    def draw(self, state: SmoothingState, count: int) -> Tensor:
        """Unit features ``(count, T, D)`` float32 of an image's next samples; leaves its sums unchanged."""
        return self._unit_features([(state, count)])[0]

    @torch.inference_mode()
    def draw_plain(self, state: SmoothingState, count: int) -> Tensor:
        """The encoder's features ``(count, T, D)`` of an image's next samples, before any feature map.

        Leaves its sums unchanged.
        """
        x, sigma = self._noisy_copies([(state, count)])
        return self.features(x, sigma, state.image.grid, noisy=state.sigma > 0).float()

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
        if state.feature_map.centred:
            features = features + self._centre(state.image.grid, state.feature_map)
        at_projector = state.feature_map.stage == "projector"
        embeddings = features if at_projector else self.encoder.project(features, state.image.grid)
        fidelity, by_token = _fidelity(state.feature_sum, state.clean)
        if n < 2:
            return SmoothedFeatures(features, embeddings, None, None, fidelity, by_token)
        image_norm = float(norm_estimate(state.token_squares.mean(), n))
        by_token_norm = norm_estimate(state.token_squares, n)
        return SmoothedFeatures(features, embeddings, image_norm, by_token_norm, fidelity, by_token)

    def _unit_features(self, parts: Sequence[tuple[SmoothingState, int]]) -> tuple[Tensor, Tensor]:
        """Unit features ``(B, T, D)`` of new samples, and their lengths ``(B, T)`` before normalisation."""
        positions = [state.noise.position() for state, _ in parts]
        try:
            x, sigma = self._noisy_copies(parts)
            first = parts[0][0]
            features = self.features(x, sigma, first.image.grid, noisy=first.sigma > 0)
            self._keep_copies(parts, features)
            features = self.mapped(features, first.image.grid, first.feature_map)  # (B, T, D)
        except Exception:
            for (state, _), position in zip(parts, positions, strict=True):
                state.noise.rewind(position)
            raise
        lengths = torch.linalg.vector_norm(features, dim=-1)  # (B, T)
        return features / lengths.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(-1), lengths

    def _keep_copies(self, parts: Sequence[tuple[SmoothingState, int]], features: Tensor) -> None:
        """Keeps what the language model would read of each new sample, for the images that want it."""
        by_image = torch.split(features, [count for _, count in parts])
        for (state, _), own in zip(parts, by_image, strict=True):
            if state.keeps_copies:
                state.copies = self.encoder.project(own, state.image.grid)

    def _add_clean_features(self, states: Sequence[SmoothingState]) -> None:
        """Computes ``clean`` of images of one shape in one batch; noise levels are not mixed in a batch of samples."""
        if not states:
            return
        first = states[0]
        x, sigma = torch.stack([state.x for state in states]), torch.zeros(len(states), device=self.encoder.device)
        features = self.features(x, sigma, first.image.grid, noisy=False)
        features = self.mapped(features, first.image.grid, first.feature_map)
        lengths = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        for state, clean in zip(states, features / lengths.clamp_min(torch.finfo(torch.float32).tiny), strict=True):
            state.clean = clean

    def _noisy_copies(self, parts: Sequence[tuple[SmoothingState, int]]) -> tuple[Tensor, Tensor]:
        """Noisy copies ``(B, …)`` of the images' shape and the noise level ``(B,)`` of each."""
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
        # On the host: on the device, repeat_interleave would synchronise to learn the size of its result.
        levels = torch.tensor([state.sigma for state, _ in parts])
        return x, levels.repeat_interleave(torch.tensor([count for _, count in parts])).to(device)

    def mapped(self, features: Tensor, grid: Grid, feature_map: FeatureMap) -> Tensor:
        """Turns the encoder's features ``(B, T, D)`` into those of a feature map, float32, not normalised."""
        if feature_map.stage == "projector":
            features = self.encoder.project(features, grid)
        if feature_map.centred:
            features = features.float() - self._centre(grid, feature_map)
        return features.float()

    def _centre(self, grid: Grid, feature_map: FeatureMap) -> Tensor:
        assert self.statistics is not None  # noqa: S101 (checked by start)
        return self.statistics.centre(feature_map.stage, grid, self.encoder.device)


def _fidelity(feature_sum: Tensor, clean: Tensor | None) -> tuple[float | None, Tensor | None]:
    """Cosine of the sample mean with the clean features: stacked, and ``(T,)`` by token; None without clean ones."""
    if clean is None:
        return None, None
    by_token = torch.nn.functional.cosine_similarity(feature_sum, clean, dim=-1)
    stacked = torch.nn.functional.cosine_similarity(feature_sum.flatten(), clean.flatten(), dim=0)
    return float(stacked), by_token
