"""Products in float8: their error, independence of the samples in a batch, and certificates."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fs_runtime.encoders import CheckpointError, load_encoder
from fs_runtime.encoders.float8 import Float8Linear, check_float8, use_float8
from fs_runtime.engine import SmoothingEngine, SmoothingResult
from fs_runtime.loading.engine import load_smoother
from fs_runtime.options import CertificateQuery
from fs_runtime.preprocessing.pictures import read_picture
from fs_runtime.receipts import parse_receipt
from fs_runtime.receipts.document import ReceiptImage
from fs_runtime.receipts.issue import issue_receipt
from fs_runtime.receipts.verify import verify
from fs_runtime.reference import example_images, reference_model_path
from fs_runtime.robustness import Fingerprints, certify
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES
from fs_runtime.smoothing.smoother import Smoother
from tests.asked import asked
from tests.integration.tiny_llava import build_tiny_llava

MODEL = str(reference_model_path())
PICTURE = read_picture(example_images()["red-circle"])


@pytest.fixture(scope="module")
def smoother() -> Smoother:
    return load_smoother(MODEL, psm="none", device="cpu", quantization="fp8")


def layer_of(inputs: int, outputs: int, seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs)


def exact(layer: Float8Linear, x: Tensor) -> Tensor:
    """The layer by its definition: operands rounded to float8 and multiplied in float64."""
    scale = (x.abs().amax(-1, keepdim=True) / 448).clamp_min(1e-12)
    rounded = (x / scale).to(torch.float8_e4m3fn).double() * scale.double()
    weight = layer.weight.double() * layer.weight_scale.T.double()
    assert layer.bias is not None
    return rounded @ weight.T + layer.bias.double()


@torch.inference_mode()
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (512, 128), (1024, 4096)])
def test_one_layer(inputs: int, outputs: int) -> None:
    """Rounding to three bits of mantissa moves a factor by at most 1/16 of itself, two by 0.13, and a sum by less."""
    linear = layer_of(inputs, outputs)
    layer = Float8Linear(linear)
    x = torch.randn(3, 50, inputs) * torch.logspace(-3, 3, 50).view(1, 50, 1)
    found, wanted = layer(x), linear(x)
    assert found.shape == wanted.shape
    sizes = x.abs() @ linear.weight.abs().T  # the sum of the products' absolute values
    assert bool(((found.double() - exact(layer, x)).abs() <= 1e-5 * sizes + 1e-6).all())
    assert bool(((found - wanted).abs() <= (2 / 16 + 1 / 256 + 1e-4) * sizes + 1e-6).all())
    products = wanted - linear.bias
    assert float((found - wanted).norm() / products.norm()) < 0.05


@torch.inference_mode()
def test_a_row_depends_on_itself_alone() -> None:
    layer = Float8Linear(layer_of(64, 32))
    x = torch.randn(8, 5, 64)
    alone = layer(x)
    x[1:] *= 1e6  # with one scale for all, the first sample would vanish
    assert torch.equal(layer(x)[0], alone[0])


@torch.inference_mode()
@pytest.mark.parametrize("value", [0.0, 1e-30, 3e38, -3e38])
def test_extreme_rows_stay_finite(value: float) -> None:
    layer = Float8Linear(layer_of(16, 16))
    x = torch.full((2, 16), value)
    x[1] = 1.0
    found = layer(x / 16)
    assert bool(found[1].isfinite().all())
    assert not bool(found[0].isnan().any())


def test_only_layers_that_suit_are_replaced() -> None:
    block = nn.Sequential(nn.Linear(32, 16), nn.Linear(32, 20), nn.MultiheadAttention(32, 2), nn.LayerNorm(32))
    assert use_float8(block) == 1
    assert isinstance(block[0], Float8Linear)
    assert type(block[1]) is nn.Linear
    assert not isinstance(block[2].out_proj, Float8Linear)


def test_features_are_close_to_those_without(smoother: Smoother) -> None:
    plain = load_smoother(MODEL, psm="none", device="cpu")
    image = plain.encoder.prepare(PICTURE)
    ones, others = (each.draw(each.start(image, 0.05, 3), 8) for each in (plain, smoother))
    cosines = (ones * others).sum(-1)
    assert float(cosines.mean()) > 0.99
    assert float(cosines.min()) > 0.9


@torch.inference_mode()
def test_an_encoders_features_depend_on_their_own_picture_alone(smoother: Smoother) -> None:
    encoder = smoother.encoder
    shape = encoder.prepare(PICTURE).pixels.shape
    x = torch.rand(4, *shape)
    alone = encoder.encode(x)
    x[1:] = 100 * torch.randn(3, *shape)
    assert torch.equal(encoder.encode(x)[0], alone[0])


def result_of(smoother: Smoother, samples: int, batch_size: int) -> tuple[SmoothingEngine, SmoothingResult]:
    engine = SmoothingEngine(smoother, batch_size=batch_size)
    try:
        return engine, engine.submit(*asked(PICTURE, 0.05, samples, 0.999, seed=11)).result(600)
    finally:
        engine.close()


def test_certificate_and_receipt_are_of_the_float8_encoder(smoother: Smoother) -> None:
    plain = load_smoother(MODEL, psm="none", device="cpu")
    assert smoother.encoder.fingerprint != plain.encoder.fingerprint
    engine, result = result_of(smoother, 64, 16)
    query = CertificateQuery(radius=0.025)
    certificate = certify(result, query, Fingerprints.of(smoother, ENCODER_FEATURES))
    assert certificate.fingerprints.model == smoother.encoder.fingerprint
    assert (certificate.smoothed.best or 0) > 0.8
    receipt = issue_receipt(engine, ReceiptImage.of(PICTURE), query, result, certificate)
    assert receipt.arithmetic.quantization == "fp8"
    receipt = parse_receipt(receipt.to_json())
    again = verify(receipt, PICTURE, lambda: smoother)
    assert again.verdict == "reproduced"
    assert again.tolerance == 5e-3
    assert verify(receipt, PICTURE, lambda: plain).verdict == "not_reproduced"


def test_a_device_without_float8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> Tensor:
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices with compute capability >= 9.0 or 8.9")

    check_float8(torch.device("cpu"))
    monkeypatch.setattr(torch, "_scaled_mm", refuses)
    with pytest.raises(CheckpointError, match=r"cpu does not multiply in float8.*8\.9.*leave quantization out"):
        check_float8(torch.device("cpu"))


def test_a_tower_without_suitable_layers_is_refused(tmp_path: Path) -> None:
    encoder = load_encoder(str(build_tiny_llava(tmp_path)))
    assert encoder.tower is not None
    for module in list(encoder.tower.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, nn.Linear(20, 20))
    with pytest.raises(CheckpointError, match="no linear layer that float8 suits"):
        encoder.in_float8()
