"""Crops of photographs: of all scales, the same ones whenever a run goes on."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fs_runtime.training.photo_crops import PhotoCrops


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    """A picture whose red is its column and whose green is its row, in 255ths of the picture."""
    red = np.broadcast_to(np.linspace(0, 255, width)[None], (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([red, green, np.full((height, width), 128.0)], -1).astype(np.uint8)


def test_crops_have_all_scales_and_places() -> None:
    crops = PhotoCrops([ramp(900, 1200)], 32, seed=3)
    found = [crops.one(step, 0) for step in range(200)]
    assert {crop.shape for crop in found} == {(32, 32, 3)}
    heights = np.array([np.ptp(crop[:, 16, 1].astype(float)) for crop in found])
    assert heights.min() < 80 < 220 < heights.max()  # from 224 of 900 rows to all of them
    rising = [crop[16, 30, 0] > crop[16, 1, 0] for crop in found]
    assert 60 < sum(rising) < 140  # half are mirrored
    assert all(crop[30, 16, 1] > crop[1, 16, 1] for crop in found)


@pytest.mark.parametrize("shape", [(16, 16), (16, 900), (300, 40)])
def test_small_and_narrow_pictures_are_enlarged(shape: tuple[int, int]) -> None:
    assert PhotoCrops([ramp(*shape)], 48, seed=0).one(1, 2).shape == (48, 48, 3)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.5, 60, 140), (1.0, 200, 200)])
def test_a_share_of_other_crops_gives_way(share: float, least: int, most: int) -> None:
    crops = PhotoCrops([ramp(60, 60)], 16, seed=1)

    def batches(start: int) -> Iterator[Tensor]:
        for _ in range(start, 50):
            yield torch.full((4, 3, 16, 16), -1.0)

    whole = torch.stack(list(crops.mixed_into(batches(0), 0, share, threads=2)))
    assert len(whole) == 50
    assert least <= int((whole[:, :, 0, 0, 0] >= 0).sum()) <= most
    assert whole.max() <= 1
    rest = torch.stack(list(crops.mixed_into(batches(20), 20, share, threads=1)))
    torch.testing.assert_close(rest, whole[20:], atol=0, rtol=0)
