"""Compiled networks give the results of eager ones, in any batch; system/test_gpu.py tests CUDA graphs."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.torch_version import TorchVersion

from fs_runtime.encoders import VisionEncoder, load_encoder
from fs_runtime.engine import SmoothingEngine, SmoothingResult
from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.loading.engine import EngineOptions, fixed_shape, load_engine, load_smoother
from fs_runtime.preprocessing.pictures import read_picture
from fs_runtime.receipts.issue import arithmetic_of
from fs_runtime.receipts.replay import tolerance
from fs_runtime.reference import example_images, reference_model_path
from fs_runtime.smoothing.compilation import CompilationError, CompiledNetworks, batch_sizes, check_mode
from fs_runtime.smoothing.smoother import Smoother
from tests.asked import asked
from tests.integration.families.llava_next import LLAVA_NEXT
from tests.integration.families.qwen import QWEN2_5_VL

# torch's compiler uses what torch itself has given up.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
WEIGHTS = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))


def networks(x: Tensor, sigma: Tensor, grid: tuple[int, int], noisy: bool) -> Tensor:
    """``(B, 3, 2, 2)`` to ``(B, 4, 5)``: small, so that it is compiled soon."""
    h = torch.tanh(x.flatten(1) * (1 + sigma.view(-1, 1))) @ WEIGHTS
    return h.unsqueeze(1).expand(-1, grid[0] * grid[1], -1) if noisy else h


@pytest.mark.parametrize(
    ("largest", "sizes"), [(32, (4, 8, 16, 32)), (128, (16, 32, 64, 128)), (5, (1, 2, 3, 5)), (1, (1,))]
)
def test_sizes(largest: int, sizes: tuple[int, ...]) -> None:
    assert batch_sizes(largest) == sizes


@torch.inference_mode()
def test_any_number_of_rows_gives_what_the_networks_give() -> None:
    compiled = CompiledNetworks(networks, "default", (3, 2, 2), 4)
    assert compiled.sizes == (1, 2, 4)
    for rows in (1, 2, 3, 4, 5, 9):
        x, sigma = torch.rand(rows, 3, 2, 2), torch.rand(rows)
        torch.testing.assert_close(compiled(x, sigma, (2, 2)), networks(x, sigma, (2, 2), True))


@torch.inference_mode()
def test_neighbours_and_padding_change_no_bit() -> None:
    compiled = CompiledNetworks(networks, "default", (3, 2, 2), 16)
    x, sigma = torch.rand(16, 3, 2, 2), torch.rand(16)
    full = compiled(x, sigma, (2, 2))
    assert torch.equal(compiled(x[:13], sigma[:13], (2, 2)), full[:13])  # padded to 16
    x[13:], sigma[13:] = 1e30, 7.0
    assert torch.equal(compiled(x, sigma, (2, 2))[:13], full[:13])


def test_fewer_than_half_of_the_smallest_size_run_as_they_are() -> None:
    """So a batch that was halved because memory ran out is not padded back to the size that did not fit."""
    seen: list[int] = []

    def counting(x: Tensor, sigma: Tensor, grid: tuple[int, int], noisy: bool) -> Tensor:
        seen.append(len(x))
        return networks(x, sigma, grid, noisy)

    compiled = CompiledNetworks(counting, "default", (3, 2, 2), 64)
    compiled._compiled = counting  # only the sizes matter here
    for rows in range(1, 64):
        with torch.inference_mode():
            compiled(torch.rand(rows, 3, 2, 2), torch.rand(rows), (2, 2))
        assert rows <= seen[-1] <= 2 * rows


def test_what_is_differentiated_and_other_shapes_are_not_taken() -> None:
    compiled = CompiledNetworks(networks, "default", (3, 2, 2), 16)
    assert not compiled.accepts(torch.rand(4, 3, 2, 2))
    with torch.inference_mode():
        assert compiled.accepts(torch.rand(4, 3, 2, 2))
        assert not compiled.accepts(torch.rand(4, 3, 2, 3))


def test_without_a_compiler_the_error_says_so() -> None:
    compiled = CompiledNetworks(networks, "default", (3, 2, 2), 16)
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}),
        pytest.raises(CompilationError, match="needs a C\\+\\+ compiler such as g\\+\\+, and a folder"),
    ):
        compiled.warm_up(torch.device("cpu"), (3, 3))


def test_cuda_graphs_are_refused_where_they_would_fail_on_the_engines_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    for version in ("2.13.0", "2.13.1+cu130", "2.20.0"):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        check_mode("reduce-overhead", gpu)
    for version in ("2.9.1", "2.11.0+cu128"):
        monkeypatch.setattr(torch, "__version__", TorchVersion(version))
        check_mode("default", gpu)
        check_mode("reduce-overhead", torch.device("cpu"))
        with pytest.raises(CompilationError, match=r"install torch 2\.13 or later, or choose default"):
            check_mode("reduce-overhead", gpu)


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> Iterator[SmoothingEngine]:
    """Compiled, for batches of 4, 2 and 1."""
    engine = load_engine(str(tiny_llava), EngineOptions(psm="none", device="cpu", batch_size=4, compile="default"))
    engine.warm_up()
    yield engine
    engine.close()


def ask(engine: SmoothingEngine, picture: NDArray[np.uint8], samples: int = 23) -> SmoothingResult:
    return engine.submit(*asked(picture, 0.1, samples, 0.999, seed=5)).result(600)


def test_an_engine_certifies_what_an_eager_one_does(
    engine: SmoothingEngine, encoder: VisionEncoder, picture: NDArray[np.uint8]
) -> None:
    assert engine.smoother.compiled is not None
    assert engine.smoother.compiled.shape == (3, 56, 56)
    eager = SmoothingEngine(Smoother(encoder), batch_size=4)
    try:
        expected, found = ask(eager, picture), ask(engine, picture)
    finally:
        eager.close()
    assert found.norm_lower == pytest.approx(expected.norm_lower, abs=tolerance("cpu", "float32", "float32") / 10)
    embeddings = (torch.as_tensor(each.payload["image_embeds"]) for each in (found, expected))
    torch.testing.assert_close(*embeddings, atol=1e-4, rtol=1e-4)


def test_nothing_is_compiled_after_the_warm_up(engine: SmoothingEngine, picture: NDArray[np.uint8]) -> None:
    frames = dict(torch._dynamo.utils.counters["frames"])
    assert frames["ok"] >= 3
    for samples in (1, 2, 3, 4, 11):
        ask(engine, picture, samples)
    assert torch._dynamo.utils.counters["frames"] == frames


def test_tiles_pass_through_the_same_networks(engine: SmoothingEngine, encoder: VisionEncoder) -> None:
    tiles, sigma = torch.rand(3, 2, 3, 56, 56), torch.full((3,), 0.1)  # 6 rows: 4 and 2
    with torch.inference_mode():
        found = engine.smoother.features(tiles, sigma, (4, 4), noisy=True)
        expected = Smoother(encoder).features(tiles, sigma, (4, 4), noisy=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_receipts_and_cache_state_the_mode(engine: SmoothingEngine, encoder: VisionEncoder) -> None:
    assert arithmetic_of(engine.smoother, 4).model_dump()["compiled"] == "default"
    assert "compiled" not in arithmetic_of(Smoother(encoder), 4).model_dump()
    request, pixels = asked(np.zeros((56, 56, 3), np.uint8), 0.1, 8, 0.999)
    assert CacheKey.of(request, engine.smoother, pixels=pixels) != CacheKey.of(
        request, Smoother(encoder), pixels=pixels
    )


def test_a_model_of_any_resolution_is_not_compiled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    QWEN2_5_VL.build(tmp_path, 3)
    engine = load_engine(str(tmp_path), EngineOptions(psm="none", device="cpu", batch_size=4, compile="default"))
    engine.close()
    assert engine.smoother.compiled is None
    assert "its networks are not compiled" in caplog.text


def test_a_model_of_tiles_has_one_shape(tmp_path: Path) -> None:
    LLAVA_NEXT.build(tmp_path, 3)
    encoder = load_encoder(str(tmp_path))
    assert encoder.prepare(np.zeros((60, 200, 3), np.uint8)).pixels.dim() == 4
    assert fixed_shape(encoder) == tuple(encoder.prepare(np.zeros((60, 60, 3), np.uint8)).pixels.shape[-3:])


@pytest.mark.slow
def test_the_reference_model_with_its_psm() -> None:
    """Minutes: the purifier's many convolutions are compiled twice."""
    picture = read_picture(example_images()["red-circle"])
    engine = load_engine(str(reference_model_path()), EngineOptions(device="cpu", batch_size=2, compile="default"))
    eager = SmoothingEngine(load_smoother(str(reference_model_path()), device="cpu"), batch_size=2)
    try:
        engine.warm_up()
        assert ask(engine, picture, 9).norm_lower == pytest.approx(ask(eager, picture, 9).norm_lower, abs=1e-6)
    finally:
        engine.close()
        eager.close()
