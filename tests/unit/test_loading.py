"""What is refused before anything is loaded."""

import pytest
import torch

from fs_runtime.encoders import CheckpointError
from fs_runtime.gpu import limit_memory
from fs_runtime.loading import load_engine


def test_a_share_of_gpu_memory_without_a_gpu_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"gpu_memory_fraction: .* needs a GPU.*leave it out"):
        load_engine("no/such/model", device="cpu", gpu_memory_fraction=0.5)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="lies in"):
        limit_memory(torch.device("cuda", 0), fraction)
