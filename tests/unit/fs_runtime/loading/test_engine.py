"""Options that are refused before loading, and process-wide settings that loading makes."""

import pytest
import torch

from fs_runtime.encoders import CheckpointError
from fs_runtime.loading.engine import EngineOptions, load_engine, load_smoother
from fs_runtime.reference import reference_model_path
from fs_runtime.system.gpu import limit_memory


def test_a_share_of_gpu_memory_without_a_gpu_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"gpu_memory_fraction: .* needs a GPU.*leave it out"):
        load_engine("no/such/model", EngineOptions(device="cpu", gpu_memory_fraction=0.5))
    with pytest.raises(CheckpointError, match="no_such_model does not exist"):  # all of it is no share
        load_engine("/no_such_model", EngineOptions(device="cpu", gpu_memory_fraction=1))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="lies in"):
        limit_memory(torch.device("cuda", 0), fraction)


def test_float32_products_are_not_rounded_to_tf32() -> None:
    torch.set_float32_matmul_precision("high")  # what TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 comes to
    try:
        load_smoother(str(reference_model_path()), psm="none", device="cpu")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
