"""Crops of photographs to train a purifier on, at all scales: encoders read whole pictures made small, not details."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fs_runtime.training.data import Pictures

_CROPS, _PLACES = 4, 5  # streams of randomness
_LEAST_SIDE = 224  # pixels of the photograph that the smallest crop shows, where it has as many
_AHEAD = 2  # steps that are prepared while one is trained on
_FILTERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True, slots=True)
class PhotoCrops:
    """Square crops of photographs, each resized to ``crop`` pixels a side.

    The side that is cut out is log-uniform between 224 pixels and the whole photograph, its place uniform, and half of
    the crops are mirrored. All of it depends on the seed, the step and the crop's number alone.

    Attributes:
        pictures: The photographs.
        crop: Pixels per side of a crop.
        seed: Fixes all crops.
    """

    pictures: Pictures
    crop: int
    seed: int

    def one(self, step: int, number: int) -> NDArray[np.uint8]:
        """Crop ``number`` of a step, ``(crop, crop, 3)`` RGB."""
        rng = np.random.default_rng((self.seed, _CROPS, step, number))
        picture = self.pictures[int(rng.integers(len(self.pictures)))]
        height, width = picture.shape[:2]
        whole = min(height, width)
        least = min(_LEAST_SIDE, whole)
        side = min(whole, round(math.exp(rng.uniform(math.log(least), math.log(whole)))))
        top, left = (int(rng.integers(length - side + 1)) for length in (height, width))
        part = Image.fromarray(picture[top : top + side, left : left + side])
        resized = np.asarray(part.resize((self.crop, self.crop), _FILTERS[int(rng.integers(2))]), dtype=np.uint8)
        return np.ascontiguousarray(resized[:, ::-1]) if rng.random() < 0.5 else resized

    def mixed_into(self, batches: Iterator[Tensor], start: int, share: float, threads: int) -> Iterator[Tensor]:
        """Puts crops of photographs in the places of a share of other crops.

        Args:
            batches: ``(B, 3, crop, crop)`` float32 in [0, 1], of the steps from ``start`` on.
            start: First step.
            share: Of the crops that become photographs, on average.
            threads: That read and resize photographs while earlier steps are trained on.
        """
        with ThreadPoolExecutor(max(1, threads)) as pool:
            waiting: deque[tuple[Tensor, list[int], list[Future[NDArray[np.uint8]]]]] = deque()
            for step, batch in enumerate(batches, start):
                rng = np.random.default_rng((self.seed, _PLACES, step))
                places = np.flatnonzero(rng.random(len(batch)) < share).tolist()
                waiting.append((batch, places, [pool.submit(self.one, step, place) for place in places]))
                if len(waiting) > _AHEAD:
                    yield _filled(*waiting.popleft())
            while waiting:
                yield _filled(*waiting.popleft())


def _filled(batch: Tensor, places: list[int], crops: list[Future[NDArray[np.uint8]]]) -> Tensor:
    for place, crop in zip(places, crops, strict=True):
        batch[place] = torch.from_numpy(crop.result().copy()).permute(2, 0, 1).float() / 255
    return batch
