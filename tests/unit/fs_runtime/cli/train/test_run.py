import pytest
from typer.testing import CliRunner

from fs_runtime.cli.train.run import mixed_precision, select_gpu
from fs_runtime.options import MixedPrecision, TrainingPrecision
from fs_runtime.system.files import TrainingError
from tests.commands import app


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
def test_every_gpu_has_mixed_precision(precision: TrainingPrecision, device: str, expected: MixedPrecision) -> None:
    assert mixed_precision(precision, device) == expected


@pytest.mark.parametrize("command", ["psm", "purifier", "robust-encoder"])
def test_unknown_precision_is_refused(command: str) -> None:
    done = CliRunner().invoke(app, ["train", command, "--precision", "float16"], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "'float16' is not one of 'auto', 'float32', 'bfloat16'" in done.output


def test_one_gpu_is_not_for_several_processes() -> None:
    with pytest.raises(TrainingError, match=r"cuda:1 is one GPU, and there are 2 processes"):
        select_gpu("cuda:1", 2)
    for device in ("cpu", "cpu:0", "cuda"):
        select_gpu(device, 2)
