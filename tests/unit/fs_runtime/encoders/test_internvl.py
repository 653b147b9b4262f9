"""The InternVL adapter against plain transformers code, on a tiny random checkpoint."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from fs_runtime.encoders import CheckpointError, VisionEncoder, load_encoder
from fs_runtime.encoders.internvl import AspectTiling
from fs_runtime.preprocessing.resize import resize_matrix
from tests.integration.families.internvl import MOST_TILES, SIDE, VISION_WIDTH, build
from tests.integration.tiny_llava import TEXT_WIDTH

BICUBIC = 3
SIZES = [(100, 60), (40, 130), (40, 40), (150, 170), (20, 200), (300, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("internvl")
    build(folder, BICUBIC)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> VisionEncoder:
    return load_encoder(str(folder))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return InternVLForConditionalGeneration.from_pretrained(folder).eval()


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resized(image: NDArray[np.uint8], height: int, width: int) -> torch.Tensor:
    """Torch's 8-bit resize, which the processor in vLLM uses."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    return functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)[0] / 255


@given(st.integers(1, 3000), st.integers(1, 3000))
@settings(max_examples=300, deadline=None)
def test_canvas_is_the_processors_and_a_function_of_the_size_alone(height: int, width: int) -> None:
    across, down = get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)
    assert AspectTiling(448, 1, 12).canvas(height, width) == (down, across)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_equal_the_processors_up_to_its_rounding(encoder: VisionEncoder, size: tuple[int, int]) -> None:
    image = picture(*size)
    prepared = encoder.prepare(image)
    across, down = get_optimal_tiled_canvas(size, (SIDE, SIDE), 1, MOST_TILES)
    assert prepared.grid == (4, 4, down, across)
    canvas = resized(image, down * SIDE, across * SIDE)
    tiles = [
        canvas[:, row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
        for row in range(down)
        for column in range(across)
    ]
    expected = torch.stack([*tiles, resized(image, SIDE, SIDE)] if len(tiles) > 1 else tiles)
    assert prepared.pixels.shape == expected.shape
    assert float((prepared.pixels - expected).abs().max()) <= 1.2 / 255


@pytest.mark.parametrize("size", [(9, 15), (8, 8), (5, 14)])
def test_spectral_norm_bounds_the_whole_map_closely(size: tuple[int, int]) -> None:
    tiling = AspectTiling(6, 1, 4)
    down, across = tiling.canvas(*size)

    def matrix(height: int, width: int) -> NDArray[np.float64]:
        return np.kron(resize_matrix(size[0], height).toarray(), resize_matrix(size[1], width).toarray())

    parts = [matrix(6 * down, 6 * across)] + ([matrix(6, 6)] if down * across > 1 else [])
    exact = np.linalg.norm(np.concatenate(parts), 2)
    assert exact * (1 - 1e-9) <= tiling(picture(*size)).spectral_norm <= 1.1 * exact


@pytest.mark.parametrize("size", SIZES)
def test_embeddings_equal_transformers(encoder: VisionEncoder, model: Any, size: tuple[int, int]) -> None:
    image = encoder.prepare(picture(*size))
    mean, std = (torch.tensor(encoder.preprocessing[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        expected = model.model.get_image_features((image.pixels - mean) / std).pooler_output.flatten(0, 1)
        features = encoder.assemble(encoder.encode(image.pixels), image.grid)
        ours = encoder.project(features, image.grid)
    tiles = len(image.pixels)
    assert features.shape == (16 * tiles, VISION_WIDTH)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)
    assert encoder.token_grids(image.grid, "encoder") == ((4, 4),) * tiles
    assert encoder.token_grids(image.grid, "projector") == ((2, 2),) * tiles
    payload = encoder.payload(ours, image)
    assert payload["image_embeds"].shape == (4 * tiles, TEXT_WIDTH)
    torch.testing.assert_close(encoder.project(features.expand(3, -1, -1), image.grid)[2], ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"height": 28, "width": 28}}, "tiles of"),
        ({"do_resize": False}, "do_resize"),
        ({"rescale_factor": 1.0}, "rescale"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "preprocessor_config.json").read_text()) | changes
    (copy / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_encoder(str(copy))
