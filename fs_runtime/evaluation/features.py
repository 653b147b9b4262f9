"""Measures a model's feature statistics: the mean feature to centre with, and the similarity of different images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fs_runtime.encoders import PreparedImage
from fs_runtime.encoders.base import Grid
from fs_runtime.options import Stage
from fs_runtime.robustness import Fingerprints
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES, FeatureMap
from fs_runtime.smoothing.feature_statistics import STAGES, FeatureStatistics, Floor, StatisticsCard
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.sums import SmoothingState

_NO_FLOOR = Floor(0.0, 0.0)  # placeholder before the measurement


def measure_feature_statistics(
    smoother: Smoother,
    images: Sequence[NDArray[np.uint8]],
    sigma: float,
    samples: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> FeatureStatistics:
    """Measures mean features and floors, by smoothing every image at both stages, centred and not.

    Args:
        smoother: Encoder with purifier and mapper; the result replaces its statistics.
        images: At least two, each ``(H, W, 3)`` uint8 RGB.
        sigma: σ > 0 in pixels of [0, 1].
        samples: Noise samples for each image.
        progress: Called with the number of smoothed images; in the end it is ``4 len(images)``.

    Raises:
        ValueError: There are fewer than two images, or no two have the same token grid.
    """
    if len(images) < 2:
        raise ValueError(f"the floor is a similarity between images; got {len(images)} of them")
    prepared = [smoother.encoder.prepare(image) for image in images]
    digests = Fingerprints.of(smoother, ENCODER_FEATURES)
    card = StatisticsCard(digests.model, digests.purifier, digests.mapper, sigma, samples, len(images))
    centres: dict[tuple[Stage, Grid | None], Tensor] = {}
    floors: dict[Stage, tuple[Floor, Floor]] = {}
    done = 0

    def smoothed(feature_map: FeatureMap) -> list[SmoothingState]:
        nonlocal done
        states = []
        for number, image in enumerate(prepared):
            state = smoother.start(image, sigma, number, feature_map)
            smoother.step([(state, samples)])
            states.append(state)
            done += 1
            progress(done)
        return states

    for stage in STAGES:
        plain = smoothed(FeatureMap(stage))
        by_grid: dict[Grid, list[Tensor]] = {}
        for state, image in zip(plain, prepared, strict=True):
            by_grid.setdefault(image.grid, []).append(smoother.finish(state).features.float().cpu())
        centres |= {(stage, grid): torch.stack(features).mean(0) for grid, features in by_grid.items()}
        centres[stage, None] = torch.cat([one for features in by_grid.values() for one in features]).mean(
            0, keepdim=True
        )
        smoother.statistics = FeatureStatistics(card, dict(centres), {stage: (_NO_FLOOR, _NO_FLOOR)})
        floors[stage] = (_floor(plain, prepared), _floor(smoothed(FeatureMap(stage, centred=True)), prepared))
    smoother.statistics = FeatureStatistics(card, centres, floors)
    return smoother.statistics


def _floor(states: Sequence[SmoothingState], images: Sequence[PreparedImage]) -> Floor:
    """Mean and 95% quantile of the cosines of all pairs of images with equal token grids."""
    cosines = []
    for grid in {image.grid for image in images}:
        means = [state.feature_sum for state, image in zip(states, images, strict=True) if image.grid == grid]
        stacked = torch.stack([mean.flatten() for mean in means if mean is not None])
        unit = torch.nn.functional.normalize(stacked.double(), dim=-1)
        first, second = torch.triu_indices(len(unit), len(unit), offset=1)
        cosines.append((unit @ unit.mT)[first, second].cpu().numpy())
    found = np.concatenate(cosines)
    if not found.size:
        raise ValueError("no two images have the same token grid, so their features cannot be compared")
    return Floor(float(found.mean()), float(np.quantile(found, 0.95)))
