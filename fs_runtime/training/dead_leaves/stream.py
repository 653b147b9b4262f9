"""An endless, reproducible stream of training crops, from a pool of pictures that is renewed gradually."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fs_runtime.training.dead_leaves.picture import leaves_picture

_PICTURES, _CROPS = 0, 1  # streams of randomness


@dataclass(frozen=True, slots=True)
class LeavesStream:
    """An endless stream of training crops.

    Drawing a picture takes longer than training on a crop. So each picture gives several crops, which differ in
    position and orientation and are many steps apart.

    Attributes:
        seed: Fixes all pictures and crops.
        batch_size: Crops of one step.
        crop: Pixels per side of a crop.
        side: Pixels per side of a picture.
        pool: Number of pictures to choose from at any step.
        steps_per_picture: Steps after which a picture of the pool is replaced.
    """

    seed: int
    batch_size: int
    crop: int
    side: int = 288
    pool: int = 96
    steps_per_picture: int = 12

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.side:
            raise ValueError(f"crops of {self.crop} pixels do not fit into pictures of {self.side}")

    def batches(self, start: int, stop: int, workers: int = 0) -> Iterator[Tensor]:
        """Crops ``(batch_size, 3, crop, crop)``, float32 in [0, 1], of the steps ``start`` to ``stop``.

        They depend neither on ``start`` nor on the number of ``workers`` (processes) that draw pictures.
        """
        if start >= stop:
            return
        first = start // self.steps_per_picture
        last = (stop - 1) // self.steps_per_picture + self.pool
        numbers = range(first, last)
        loader: DataLoader[Any] = DataLoader(
            _Drawn(self.seed, self.side, numbers), batch_size=None, num_workers=workers
        )
        pictures = iter(loader)
        pool: deque[NDArray[np.uint8]] = deque(maxlen=self.pool)
        newest = first
        for step in range(start, stop):
            while newest < step // self.steps_per_picture + self.pool:
                pool.append(next(pictures).numpy())
                newest += 1
            yield self._batch(step, pool)

    def _batch(self, step: int, pool: deque[NDArray[np.uint8]]) -> Tensor:
        rng = np.random.default_rng((self.seed, _CROPS, step))
        crops = []
        for number in rng.integers(0, len(pool), self.batch_size):
            y, x = rng.integers(0, self.side - self.crop + 1, 2)
            crop = pool[int(number)][y : y + self.crop, x : x + self.crop]
            crop = np.rot90(crop, int(rng.integers(4)))
            crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
        pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
        return pixels.float() / 255


class _Drawn(Dataset[Tensor]):
    def __init__(self, seed: int, side: int, numbers: range) -> None:
        self._seed, self._side, self._numbers = seed, side, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Tensor:
        rng = np.random.default_rng((self._seed, _PICTURES, self._numbers[index]))
        return torch.from_numpy(leaves_picture(rng, self._side))
