"""Measures a model's feature statistics: the mean feature to centre with, and the similarity of different images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fs_runtime.encoders.base import Grid
from fs_runtime.options import Stage
from fs_runtime.robustness import Fingerprints
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES, FeatureMap
from fs_runtime.smoothing.feature_statistics import STAGES, FeatureStatistics, Floor, NoiseLevel, StatisticsCard
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.smoothing.sums import SmoothingState, norm_estimate

FEATURE_MAPS = tuple(FeatureMap(stage, centred) for stage in STAGES for centred in (False, True))
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
    grids = [image.grid for image in prepared]
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
        centred = smoothed(FeatureMap(stage, centred=True))
        floors[stage] = (_floor(_sums(plain), grids), _floor(_sums(centred), grids))
    smoother.statistics = FeatureStatistics(card, centres, floors)
    return smoother.statistics


@torch.inference_mode()
def measure_noise_levels(
    smoother: Smoother,
    images: Sequence[NDArray[np.uint8]],
    sigmas: Sequence[float],
    samples: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> list[NoiseLevel]:
    """Measures what smoothing leaves of pictures, and how similar it makes different ones, at several noise levels.

    One pass for each image and level gives all stages. The centre of centred features is that of the smoother's
    statistics, whatever the level, as it is when requests are served.

    Args:
        smoother: Encoder with purifier and mapper, and statistics of :func:`measure_feature_statistics`.
        images: At least two, each ``(H, W, 3)`` uint8 RGB.
        sigmas: Noise levels above 0.
        samples: Noise samples for each image.
        progress: Called with the number of smoothed images; in the end it is ``len(sigmas) len(images)``.

    Raises:
        ValueError: The smoother has no statistics, or no two images have the same token grid.
    """
    if smoother.statistics is None:
        raise ValueError("noise levels are measured with the centre of the model's feature statistics; it has none")
    prepared = [smoother.encoder.prepare(image) for image in images]
    levels: list[NoiseLevel] = []
    for sigma in sigmas:
        means: dict[FeatureMap, list[Tensor]] = {each: [] for each in FEATURE_MAPS}
        norms, fidelities, by_token = [], [], []
        for number, image in enumerate(prepared):
            state = smoother.start(image, sigma, number)
            features = smoother.draw_plain(state, samples)
            for feature_map, found in means.items():
                unit = _unit(smoother, features, image.grid, feature_map)
                found.append(unit.mean(0))
            mean = means[ENCODER_FEATURES][-1]
            clean = smoother.features(state.x[None], torch.zeros(1, device=state.x.device), image.grid, noisy=False)
            clean = _unit(smoother, clean.float(), image.grid, ENCODER_FEATURES)[0]
            squares = (samples * mean).square().sum(-1)
            norms.append(float(norm_estimate(squares.mean(), samples)))
            fidelities.append(float(torch.nn.functional.cosine_similarity(mean.flatten(), clean.flatten(), dim=0)))
            by_token.append(float(torch.nn.functional.cosine_similarity(mean, clean, dim=-1).mean()))
            progress(len(levels) * len(prepared) + number + 1)
        grids = [image.grid for image in prepared]
        floors: dict[Stage, tuple[Floor, Floor]] = {}
        for stage in STAGES:
            plain, centred = (_floor(means[FeatureMap(stage, off)], grids) for off in (False, True))
            floors[stage] = (plain, centred)
        low = float(np.quantile(fidelities, 0.05))
        norm, fidelity, tokens = (float(np.mean(values)) for values in (norms, fidelities, by_token))
        levels.append(NoiseLevel(sigma, norm, fidelity, tokens, low, floors))
    return levels


def _sums(states: Sequence[SmoothingState]) -> list[Tensor]:
    return [state.feature_sum for state in states if state.feature_sum is not None]


def _unit(smoother: Smoother, features: Tensor, grid: Grid, feature_map: FeatureMap) -> Tensor:
    """Unit features ``(n, T, D)`` of a feature map, from the encoder's."""
    return torch.nn.functional.normalize(smoother.mapped(features, grid, feature_map), dim=-1)


def _floor(means: Sequence[Tensor], grids: Sequence[Grid]) -> Floor:
    """Mean and 95% quantile of the cosines of all pairs of images with equal token grids."""
    cosines = []
    for grid in set(grids):
        stacked = torch.stack([mean.flatten() for mean, of in zip(means, grids, strict=True) if of == grid])
        unit = torch.nn.functional.normalize(stacked.double(), dim=-1)
        first, second = torch.triu_indices(len(unit), len(unit), offset=1)
        cosines.append((unit @ unit.mT)[first, second].cpu().numpy())
    found = np.concatenate(cosines)
    if not found.size:
        raise ValueError("no two images have the same token grid, so their features cannot be compared")
    return Floor(float(found.mean()), float(np.quantile(found, 0.95)))
