"""Random checkpoints load as the families whose shapes they have; tested with few layers, for speed."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fs_runtime.benchmarks import random_models
from fs_runtime.benchmarks.random_models import SHAPES, LlavaShape, QwenShape, write_random_model
from fs_runtime.encoders import load_encoder


@pytest.mark.parametrize(
    ("name", "family", "grid", "width"),
    [
        ("clip-vit-l-14-336", "llava", (24, 24), 1024),
        ("siglip-so400m-14-384", "llava", (27, 27), 1152),
        ("qwen2.5-vl-7b", "qwen2_5_vl", (32, 32), 1280),
    ],
)
def test_shapes_are_those_of_the_models(
    name: str, family: str, grid: tuple[int, int], width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[name]
    if isinstance(shape, QwenShape):
        shape = QwenShape({**shape.vision, "depth": 2, "fullatt_block_indexes": [1]})
    else:
        tower = type(shape.tower)(**{**shape.tower.to_dict(), "num_hidden_layers": 2})
        shape = dataclasses.replace(shape, tower=tower)
    monkeypatch.setitem(random_models.SHAPES, name, shape)
    encoder = load_encoder(str(write_random_model(name, tmp_path)))
    assert encoder.family == family
    image = encoder.prepare(np.zeros((448, 448, 3), np.uint8))
    assert image.grid == grid
    with torch.inference_mode():
        features = encoder.encode(image.pixels[None])
        embeddings = encoder.project(features, image.grid)
    assert features.shape == (1, grid[0] * grid[1], width)
    merged = 4 if isinstance(shape, QwenShape) else 1
    assert embeddings.shape[1:] == (features.shape[1] // merged, 3584 if isinstance(shape, QwenShape) else 4096)
    assert float(features.std(dim=1).mean()) > 0  # tokens differ


def test_an_unknown_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"choose from clip-vit-l-14-336"):
        write_random_model("round", tmp_path)
    assert isinstance(SHAPES["clip-vit-l-14-336"], LlavaShape)
