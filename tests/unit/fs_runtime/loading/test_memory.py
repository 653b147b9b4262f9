"""Estimates of the memory that a model needs, and of free memory."""

from pathlib import Path

import pytest
import torch

from fs_runtime.encoders import CheckpointError, load_encoder
from fs_runtime.loading import memory
from fs_runtime.loading.memory import MemoryShortError, check_memory, estimate_memory, free_memory
from fs_runtime.reference import reference_model_path
from fs_runtime.system.gpu import gpu_state
from tests.integration.families import CASES
from tests.integration.families.case import FamilyCase


def weights(encoder: object) -> int:
    """Bytes of all modules of an adapter."""
    modules = [value for value in vars(encoder).values() if isinstance(value, torch.nn.Module)]
    return sum(parameter.nbytes for module in modules for parameter in module.parameters())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model_type)
def test_the_vision_part_of_every_family_is_found_by_name(case: FamilyCase, tmp_path: Path) -> None:
    case.build(tmp_path / "model")
    encoder = load_encoder(str(tmp_path / "model"))
    path = str(tmp_path / "model")
    before_batch, two, both = (
        estimate_memory(path, language_model=language_model, batch_size=batch_size, device="cpu", psm="none")
        for language_model, batch_size in ((False, 1), (False, 2), (True, 1))
    )
    estimate = (before_batch - (two - before_batch)) / 1.1
    # Layers above the one that is read are stored and not loaded.
    assert weights(encoder) <= estimate + 8 <= 4 * weights(encoder)
    assert both > before_batch + 1.1 * 4 * 2 * 64 * 64


def test_precision_purifier_and_batch_count() -> None:
    model = str(reference_model_path())
    single = estimate_memory(model, language_model=False, batch_size=1, device="cpu")
    assert estimate_memory(model, language_model=False, batch_size=1, device="cpu", dtype="bfloat16") == pytest.approx(
        single / 2, abs=2
    )
    assert estimate_memory(model, language_model=False, batch_size=1, device="cpu", psm="none") < single - 4 * 1_200_000
    assert estimate_memory(model, language_model=False, batch_size=64, device="cpu") > 4 * single


def test_what_does_not_fit_is_refused_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(reference_model_path())
    needed = estimate_memory(model, language_model=True, device="cpu")
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    with pytest.raises(MemoryShortError, match=r"take about 0\.08 GiB of memory on cpu, and 0\.08 GiB are free"):
        check_memory(model, language_model=True, batch_size=None, device="cpu")
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    check_memory(model, language_model=True, batch_size=None, device="cpu")


def test_a_checkpoint_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        estimate_memory(str(tmp_path), language_model=False, device="cpu")


def test_this_machine_says_what_is_free() -> None:
    free = free_memory("cpu")
    assert free is not None
    assert 10 * 2**20 < free < 2**50


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_says_what_is_free_and_gets_back_what_is_released() -> None:
    before = free_memory("cuda")
    taken = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    during = free_memory("cuda")
    del taken
    memory.release_memory()
    after = free_memory("cuda")
    assert before is not None
    assert during is not None
    assert after is not None
    assert during <= before - 2**28 + 2**22
    assert after >= during + 2**28 - 2**22
    assert torch.cuda.memory_reserved() == 0


@pytest.mark.parametrize(
    ("own", "files", "rooms"),
    [
        (
            "0::/pod/one\n",
            {
                "pod/memory.max": "1000",
                "pod/memory.current": "900",
                "pod/memory.stat": "anon 3\ninactive_file 50\n",
                "pod/one/memory.max": "max",
                "pod/one/memory.current": "700",
            },
            [150],
        ),
        (
            "4:memory:/pod\n0::/\n",
            {
                "memory/pod/memory.limit_in_bytes": "500",
                "memory/pod/memory.usage_in_bytes": "600",
                "memory/memory.limit_in_bytes": "9000",
                "memory/memory.usage_in_bytes": "1000",
                "memory/memory.stat": "total_inactive_file 10\n",
            },
            [0, 8010],
        ),
        ("", {}, []),
    ],
)
def test_limits_of_control_groups(tmp_path: Path, own: str, files: dict[str, str], rooms: list[int]) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory._available_to_groups(tmp_path / "groups", tmp_path / "own") == rooms


def test_a_gpu_that_is_lost_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(index: int) -> None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "mem_get_info", fails)  # no such fault can be made on purpose and undone
    assert gpu_state(torch.device("cuda:0")) is None
