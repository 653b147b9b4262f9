"""The whole runtime on a CUDA device: engine, certificate and embedded language model, in float32 and bfloat16."""

import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from fs_runtime.embedded import EmbeddedModel, Generation
from fs_runtime.encoders.float8 import Float8Linear
from fs_runtime.engine import SmoothingEngine, SmoothingResult
from fs_runtime.loading.engine import EngineOptions, load_engine, load_smoother
from fs_runtime.options import CertificateQuery
from fs_runtime.preprocessing.pictures import read_picture
from fs_runtime.reference import example_images, reference_model_path
from fs_runtime.robustness import Fingerprints, certify
from fs_runtime.system.gpu import gpu_state, limit_memory
from tests.asked import asked

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MODEL = str(reference_model_path())
PICTURE = read_picture(example_images()["red-circle"])


def certificate_of(result: SmoothingResult) -> float:
    query = CertificateQuery(radius=0.025)
    return certify(result, query, Fingerprints("sha256:x", None, None)).smoothed.best or 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_is_answered_and_certified(dtype: str) -> None:
    engine = load_engine(MODEL, EngineOptions(device="cuda", dtype=dtype))
    try:
        engine.warm_up()
        result = engine.submit(*asked(PICTURE, 0.05, 512, 0.999)).result(60)
    finally:
        engine.close()
    assert certificate_of(result) > 0.97
    model = EmbeddedModel(MODEL, device="cuda", dtype=dtype)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe the image."}]}]
    pieces = model.generate(model.prompt(messages, [result.payload]), Generation(40, temperature=0), threading.Event())
    assert "".join(piece.text for piece in pieces) == "An orange heart, a purple ring and a red circle."


def test_cpu_and_gpu_certify_the_same_up_to_the_draws() -> None:
    bounds = []
    for device, dtype in (("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")):
        engine = load_engine(MODEL, EngineOptions(device=device, dtype=dtype))
        bounds.append(certificate_of(engine.submit(*asked(PICTURE, 0.05, 1024, 0.999)).result(120)))
        engine.close()
    np.testing.assert_allclose(bounds, bounds[0], atol=2e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-3)])
def test_same_seed_same_certificate_whatever_shares_the_batch(dtype: str, tolerance: float) -> None:
    engine = SmoothingEngine(load_smoother(MODEL, device="cuda", dtype=dtype), batch_size=64)

    def ask(seed: int) -> Future[SmoothingResult]:
        return engine.submit(*asked(PICTURE, 0.05, 300, 0.999, seed=seed))

    try:
        alone = ask(7).result(60)
        others = [ask(seed) for seed in range(20, 25)]
        among = ask(7).result(60)
        for other in others:
            other.result(60)
    finally:
        engine.close()
    assert among.norm_lower == pytest.approx(alone.norm_lower, abs=tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's compiler
@pytest.mark.parametrize(
    "mode",
    [
        "default",
        pytest.param(
            "reduce-overhead",
            marks=pytest.mark.skipif(torch.__version__ < "2.13", reason="refused before torch 2.13"),
        ),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-4), ("bfloat16", 5e-3)])
def test_compiled_networks_certify_what_eager_ones_do(dtype: str, tolerance: float, mode: Any) -> None:
    """With CUDA graphs too, which are made on the engine's own thread; 300 samples fill four batches and a part."""
    found = []
    for compile_mode in ("none", mode):
        engine = load_engine(MODEL, EngineOptions(device="cuda", dtype=dtype, batch_size=64, compile=compile_mode))
        try:
            engine.warm_up()
            for _ in range(3):
                request = asked(PICTURE, 0.05, 300, 0.999, seed=7)
                found.append(float(engine.submit(*request).result(300).norm_lower))
        finally:
            engine.close()
    np.testing.assert_allclose(found, found[0], atol=tolerance)


needs_float8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs float8 products"
)


@needs_float8
@torch.inference_mode()
@pytest.mark.parametrize("tokens", [17, 577])
def test_a_float8_layer(tokens: int) -> None:
    linear = torch.nn.Linear(1024, 4096, device="cuda")
    layer = Float8Linear(linear)
    x = torch.randn(8, tokens, 1024, device="cuda") * torch.logspace(-3, 3, tokens, device="cuda").view(1, -1, 1)
    alone, wanted = layer(x), linear(x)
    sizes = x.abs() @ linear.weight.abs().T
    # Two roundings to three bits of mantissa, and one to bfloat16 of the sum.
    assert bool(((alone - wanted).abs() <= (2 / 16 + 1 / 256 + 1 / 128) * sizes + 1e-6).all())
    x[1:] *= 1e6
    assert torch.equal(layer(x)[0], alone[0])


@needs_float8
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # of torch's compiler
@pytest.mark.parametrize("mode", ["none", "default"])
def test_a_float8_encoder_is_certified(mode: Any) -> None:
    engine = load_engine(MODEL, EngineOptions(device="cuda", batch_size=64, compile=mode, quantization="fp8"))
    plain = load_smoother(MODEL, device="cuda", dtype="bfloat16")
    try:
        engine.warm_up()
        result = engine.submit(*asked(PICTURE, 0.05, 512, 0.999)).result(300)
    finally:
        engine.close()
    assert certificate_of(result) > 0.95
    image = plain.encoder.prepare(PICTURE)
    ones, others = (each.draw(each.start(image, 0.05, 3), 64) for each in (plain, engine.smoother))
    assert float((ones * others).sum(-1).mean()) > 0.99


def test_the_state_of_the_device() -> None:
    kept = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
    state = gpu_state(kept.device)
    assert state is not None
    assert state.name == "cuda:0"
    assert kept.nbytes <= state.reserved_bytes <= state.used_bytes <= state.total_bytes
    assert state.reserved_bytes <= state.limit_bytes <= state.total_bytes
    assert state.utilization is None or 0 <= state.utilization <= 1


def test_a_share_of_memory_is_a_ceiling_and_makes_batches_smaller() -> None:
    device = torch.device("cuda", 0)
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.empty_cache()
    smoother = load_smoother(MODEL, device="cuda", dtype="float32")
    used = torch.cuda.memory_reserved(device)
    limit_memory(device, (used + 400 * 2**20) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(500 * 2**20, dtype=torch.uint8, device=device)
        state = gpu_state(device)
        assert state is not None
        assert state.limit_bytes < state.total_bytes
        engine = SmoothingEngine(smoother, batch_size=4096)
        try:
            result = engine.submit(*asked(PICTURE, 0.05, 4096, 0.999)).result(300)
            assert result.samples == 4096
            assert engine.out_of_memory_events > 0
            assert torch.cuda.memory_reserved(device) <= state.limit_bytes
        finally:
            engine.close()
    finally:
        limit_memory(device, 1.0)


_ASSERTION = """
import sys, numpy as np, torch
from fs_runtime.engine import DeviceLostError, SmoothingEngine
from fs_runtime.system.gpu import device_works
from fs_runtime.loading import load_smoother
from tests.asked import asked

smoother = load_smoother(sys.argv[1], device="cuda")
engine = SmoothingEngine(smoother, batch_size=8)
request = asked(np.zeros((56, 56, 3), np.uint8), 0.05, 8, 0.9)
engine.submit(*request).result(60)
assert device_works(smoother.encoder.device)
step = smoother.step
def failing(parts):
    torch.zeros(4, device="cuda")[torch.tensor([99], device="cuda")].sum().item()
    return step(parts)
smoother.step = failing
for attempt in range(2):
    try:
        engine.submit(*request).result(60)
    except DeviceLostError:
        continue
    raise SystemExit("the lost device was not noticed")
assert engine.device_lost and not engine.alive
print("noticed")
"""


def test_a_real_assertion_on_the_device_is_noticed() -> None:
    """In a process of its own, for its CUDA context is gone afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", _ASSERTION, MODEL], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "noticed" in done.stdout
