import pytest
import typer

from fs_runtime.cli.train.run import mixed_precision, select_gpu
from fs_runtime.system.files import TrainingError


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", "no"),
        ("auto", "cpu:0", "no"),
        ("auto", "cuda", "bf16"),
        ("auto", "cuda:1", "bf16"),
        ("float32", "cuda:1", "no"),
        ("bfloat16", "cpu", "bf16"),
    ],
)
def test_every_gpu_has_mixed_precision(precision: str, device: str, expected: str) -> None:
    assert mixed_precision(precision, device) == expected


def test_unknown_precision_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="float32 or bfloat16"):
        mixed_precision("float16", "cpu")


def test_one_gpu_is_not_for_several_processes() -> None:
    with pytest.raises(TrainingError, match=r"cuda:1 is one GPU, and there are 2 processes"):
        select_gpu("cuda:1", 2)
    for device in ("cpu", "cpu:0", "cuda"):
        select_gpu(device, 2)
