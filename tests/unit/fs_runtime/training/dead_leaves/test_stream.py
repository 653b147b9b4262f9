import pytest
import torch

from fs_runtime.training.dead_leaves import LeavesStream

STREAM = LeavesStream(seed=3, batch_size=2, crop=16, side=32, pool=4, steps_per_picture=2)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there is one processor
def test_crops_are_the_same_wherever_one_starts_and_whoever_draws() -> None:
    whole = list(STREAM.batches(0, 9))
    assert len(whole) == 9
    for workers in (0, 2):
        later = list(STREAM.batches(5, 9, workers))
        assert all(torch.equal(one, other) for one, other in zip(whole[5:], later, strict=True))
    assert not torch.equal(whole[0], whole[1])


def test_crops_are_pixels() -> None:
    crops = next(STREAM.batches(0, 1))
    assert crops.shape == (2, 3, 16, 16)
    assert crops.dtype == torch.float32
    assert 0 <= float(crops.min()) <= float(crops.max()) <= 1


def test_nothing_to_do() -> None:
    assert list(STREAM.batches(4, 4)) == []


def test_crops_must_fit() -> None:
    with pytest.raises(ValueError, match="crops of 64 pixels do not fit into pictures of 32"):
        LeavesStream(seed=0, batch_size=1, crop=64, side=32)
