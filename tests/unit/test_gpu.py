"""The whole runtime on a CUDA device: engine, certificate and embedded language model, in float32 and bfloat16."""

import threading
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from fs_runtime.embedded import EmbeddedModel, Generation
from fs_runtime.engine import SmoothingEngine, SmoothingRequest, SmoothingResult
from fs_runtime.gpu import gpu_state
from fs_runtime.loading import load_engine, load_smoother
from fs_runtime.pictures import read_picture
from fs_runtime.query import CertificateQuery
from fs_runtime.reference import example_images, reference_model_path
from fs_runtime.robustness import Fingerprints, certify

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MODEL = str(reference_model_path())
PICTURE = read_picture(example_images()["red-circle"])


def certificate_of(result: SmoothingResult) -> float:
    query = CertificateQuery(radius=0.025)
    return certify(result, query, Fingerprints("sha256:x", None, None)).smoothed.best or 0.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_picture_is_answered_and_certified(dtype: str) -> None:
    engine = load_engine(MODEL, device="cuda", dtype=dtype)
    try:
        engine.warm_up()
        result = engine.submit(SmoothingRequest(PICTURE, 0.05, 512, 0.999)).result(60)
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
        engine = load_engine(MODEL, device=device, dtype=dtype)
        bounds.append(certificate_of(engine.submit(SmoothingRequest(PICTURE, 0.05, 1024, 0.999)).result(120)))
        engine.close()
    np.testing.assert_allclose(bounds, bounds[0], atol=2e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-3)])
def test_same_seed_same_certificate_whatever_shares_the_batch(dtype: str, tolerance: float) -> None:
    engine = SmoothingEngine(load_smoother(MODEL, device="cuda", dtype=dtype), batch_size=64)

    def ask(seed: int) -> Future[SmoothingResult]:
        return engine.submit(SmoothingRequest(PICTURE, 0.05, 300, 0.999, seed=seed))

    try:
        alone = ask(7).result(60)
        others = [ask(seed) for seed in range(20, 25)]
        among = ask(7).result(60)
        for other in others:
            other.result(60)
    finally:
        engine.close()
    assert among.norm_lower == pytest.approx(alone.norm_lower, abs=tolerance)


def test_the_state_of_the_device() -> None:
    kept = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
    state = gpu_state(kept.device)
    assert state is not None
    assert state.name == "cuda:0"
    assert kept.nbytes <= state.reserved_bytes <= state.used_bytes <= state.total_bytes
    assert state.utilization is None or 0 <= state.utilization <= 1
