import hashlib
from pathlib import Path

import pytest
import torch

from fs_runtime.system.files import TrainingError
from fs_runtime.training.checkpoint import TrainingCheckpoint, read_checkpoint, write_checkpoint

IDENTITY = {"seed": 0, "sigma": [0.25]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    weight = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    state = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    write_checkpoint(
        tmp_path / "checkpoint.pt", TrainingCheckpoint("purifier", 3, 0.5, {"net": {"w": weight}}, state), IDENTITY
    )
    return tmp_path / "checkpoint.pt"


def test_what_is_written_comes_back(path: Path) -> None:
    checkpoint = read_checkpoint(path, IDENTITY)
    assert checkpoint is not None
    assert (checkpoint.stage, checkpoint.step, checkpoint.score) == ("purifier", 3, 0.5)
    weight = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(checkpoint.networks["net"]["w"], weight)
    assert checkpoint.optimizer["param_groups"] == [{"lr": 1e-3}]
    assert read_checkpoint(path.with_name("none.pt"), IDENTITY) is None


def test_any_flipped_bit_is_found(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(0, len(whole), len(whole) // 40):
        contents = bytearray(whole)
        contents[place] ^= 64
        path.write_bytes(contents)
        with pytest.raises(TrainingError, match=r"checkpoint\.pt is damaged.*delete it"):
            read_checkpoint(path, IDENTITY)


@pytest.mark.parametrize("kept", [0, 20, 1000])
def test_half_a_file_is_found(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TrainingError, match="is damaged"):
        read_checkpoint(path, IDENTITY)


@pytest.mark.parametrize("fields", [[1], {"identity": "{}"}, {"identity": 3}, {"identity": "{}", "depth": 1}])
def test_what_another_version_wrote_is_explained(tmp_path: Path, fields: object) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(fields, path)
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())
    with pytest.raises(TrainingError, match="of another version"):
        read_checkpoint(path, {})


def test_a_place_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be read: Not a directory"):
        read_checkpoint(tmp_path / "file" / "checkpoint.pt", {})
