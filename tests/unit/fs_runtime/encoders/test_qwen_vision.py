"""Qwen-VL adapters against plain transformers code, on tiny random checkpoints."""

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
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from fs_runtime.encoders import CheckpointError, ImageSizeError, PreparedImage, VisionEncoder, load_encoder
from fs_runtime.encoders.smart_resize import SmartResize
from fs_runtime.loading.engine import load_smoother
from fs_runtime.preprocessing.resize import resize_matrix
from tests.integration.families.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL, VISION_WIDTH
from tests.integration.tiny_llava import TEXT_WIDTH

SIZES = [(112, 112), (84, 140), (140, 84), (60, 200), (300, 97), (500, 400), (20, 30), (28, 28)]
CASES = {case.model_type: case for case in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)}
BICUBIC = 3
LEVELS = {"qwen2_vl": 1, "qwen2_5_vl": 1, "qwen3_vl": 3}


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(family)
    CASES[family].build(folder, BICUBIC)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> VisionEncoder:
    return load_encoder(str(folder))


@pytest.fixture(scope="module")
def model(family: str, folder: Path) -> Any:
    return CASES[family].reference.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    return Qwen2VLImageProcessorPil.from_pretrained(folder)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_preprocessing_equals_the_processors_up_to_its_rounding(
    encoder: VisionEncoder, processor: Any, size: tuple[int, int]
) -> None:
    """The grid is Qwen's own; the pixels are those of torch's 8-bit resize, which the processor in vLLM uses."""
    image = picture(*size)
    prepared = encoder.prepare(image)
    assert [1, *prepared.grid] == processor(image, return_tensors="pt")["image_grid_thw"][0].tolist()
    target = [side * processor.patch_size for side in prepared.grid]
    resized = functional.interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], size=target, mode="bicubic", antialias=True
    )
    assert prepared.pixels.shape == (3, *target)
    assert float((prepared.pixels - resized[0] / 255).abs().max()) <= 1.2 / 255  # two roundings of half a step each


@pytest.mark.parametrize("size", [(10, 14), (14, 10), (3, 15), (8, 8), (30, 6)])
def test_spectral_norm_is_that_of_the_whole_map(size: tuple[int, int]) -> None:
    """The map, column by column: it is linear around grey, where nothing is clipped."""
    geometry = SmartResize(2, 2, 64, 256)
    rows, columns = geometry.size(*size)
    whole = np.kron(resize_matrix(size[0], rows).toarray(), resize_matrix(size[1], columns).toarray())
    assert geometry(picture(*size)).spectral_norm == pytest.approx(np.linalg.norm(whole, 2), rel=1e-9)


@given(st.integers(1, 4000), st.integers(1, 4000))
@settings(max_examples=300, deadline=None)
def test_size_is_the_processors_and_a_function_of_the_size_alone(height: int, width: int) -> None:
    geometry = SmartResize(14, 2, 56 * 56, 28 * 28 * 1280)
    try:
        expected = smart_resize(height, width, 28, 56 * 56, 28 * 28 * 1280)
    except ValueError:
        with pytest.raises(ImageSizeError, match="200 times"):
            geometry.size(height, width)
    else:
        assert geometry.size(height, width) == expected


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(56 * 56, 28 * 28 * 2000))
@settings(max_examples=300, deadline=None)
def test_a_cap_is_the_processors_max_pixels(height: int, width: int, cap: int) -> None:
    own = 28 * 28 * 1280
    geometry = SmartResize(14, 2, 56 * 56, own).capped(cap)
    try:
        expected = smart_resize(height, width, 28, 56 * 56, min(cap, own))
    except ValueError:
        return
    assert geometry.size(height, width) == expected


def test_a_cap_shrinks_large_images_and_no_others(folder: Path, family: str) -> None:
    own, capped = (load_smoother(str(folder), max_pixels=cap).encoder for cap in (0, 20 * 1024))
    small, large = (112, 112), (500, 400)
    assert torch.equal(own.prepare(picture(*small)).pixels, capped.prepare(picture(*small)).pixels)
    one, other = own.prepare(picture(*large)), capped.prepare(picture(*large))
    assert other.pixels[0].numel() <= 20 * 1024 < one.pixels[0].numel()
    assert other.grid == capped.prepare(picture(*large, seed=1)).grid  # of the size alone: an attack does not change it
    moved = picture(*large).astype(float) - picture(*large, seed=1)
    distance = float((other.pixels - capped.prepare(picture(*large, seed=1)).pixels).norm())
    assert distance <= other.spectral_norm * np.linalg.norm(moved / 255) * (1 + 1e-6)
    assert capped.preprocessing["max_pixels"] == 20 * 1024
    assert capped.fingerprint == own.fingerprint


def test_a_cap_that_the_model_cannot_keep_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="at least"):
        load_smoother(str(folder), max_pixels=100)


@pytest.mark.parametrize("size", SIZES)
def test_embeddings_equal_transformers(
    family: str, encoder: VisionEncoder, model: Any, processor: Any, size: tuple[int, int]
) -> None:
    image = encoder.prepare(picture(*size))
    # What transformers' processor makes of an image that needs no resizing is what it makes of our pixels.
    processor = Qwen2VLImageProcessorPil(
        **{key: getattr(processor, key) for key in ("patch_size", "image_mean", "image_std")},
        do_resize=False,
        do_rescale=False,
    )
    inputs = processor(image.pixels.numpy(), input_data_format="channels_first", return_tensors="pt")
    with torch.inference_mode():
        outputs = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        expected = CASES[family].embeddings(outputs)
        features = encoder.encode(image.pixels[None])
        ours = encoder.project(features[0], image.grid)
    levels = LEVELS[family]
    assert features.shape == (1, image.grid[0] * image.grid[1], levels * VISION_WIDTH)
    assert ours.shape == (len(expected), levels * TEXT_WIDTH)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


def test_copies_are_one_batch(encoder: VisionEncoder) -> None:
    image = encoder.prepare(picture(90, 150))
    x = image.pixels + 0.1 * torch.randn(5, *image.pixels.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = encoder.encode(x)
        single = torch.cat([encoder.encode(one[None]) for one in x])
    torch.testing.assert_close(whole, single, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        encoder.project(whole, image.grid)[3], encoder.project(whole[3], image.grid), atol=1e-5, rtol=1e-4
    )


def test_tokens_are_in_reading_order(encoder: VisionEncoder) -> None:
    """A change in one corner of the image moves that corner's token most, at both stages, windows or not."""
    image = encoder.prepare(picture(112, 196))
    rows, columns = image.grid
    changed = image.pixels.clone()
    changed[:, -8:, :8] = 1 - changed[:, -8:, :8]  # bottom left
    with torch.inference_mode():
        before, after = encoder.encode(torch.stack([image.pixels, changed]))
        moved = (after - before).norm(dim=-1)
        merged = (encoder.project(after, image.grid) - encoder.project(before, image.grid)).norm(dim=-1)
    assert int(moved.argmax()) == (rows - 1) * columns
    assert int(merged.argmax()) == (rows // 2 - 1) * (columns // 2)


def test_payload_is_what_vllm_takes(family: str, encoder: VisionEncoder) -> None:
    image = encoder.prepare(picture(90, 150))
    with torch.inference_mode():
        payload = encoder.payload(encoder.project(encoder.encode(image.pixels[None])[0], image.grid), image)
    rows, columns = image.grid
    assert payload["image_embeds"].shape == (rows * columns // 4, LEVELS[family] * TEXT_WIDTH)
    assert payload["image_embeds"].dtype == np.float32
    assert payload["image_grid_thw"].tolist() == [1, rows, columns]


@pytest.mark.parametrize("broken", ["width", "count", "nan", "inf", "batch", "grid"])
def test_payload_that_would_stop_vllm_is_refused(encoder: VisionEncoder, broken: str) -> None:
    image = encoder.prepare(picture(90, 150))
    tokens = image.grid[0] * image.grid[1] // 4
    shape = {
        "width": (tokens, encoder.embedding_size - 1),  # type: ignore[attr-defined]
        "count": (tokens + 1, encoder.embedding_size),  # type: ignore[attr-defined]
        "batch": (1, tokens, encoder.embedding_size),  # type: ignore[attr-defined]
    }.get(broken, (tokens, encoder.embedding_size))  # type: ignore[attr-defined]
    embeddings = torch.zeros(shape)
    if broken in ("nan", "inf"):
        embeddings[2, 3] = float(broken)
    if broken == "grid":
        image = PreparedImage(image.pixels, image.spectral_norm, (image.grid[0] + 1, image.grid[1]))
    with pytest.raises(ValueError, match=r"shape|finite|divide"):
        encoder.payload(embeddings, image)


def test_token_grids_are_those_before_and_after_merging(encoder: VisionEncoder) -> None:
    rows, columns = grid = encoder.prepare(picture(90, 150)).grid
    assert encoder.token_grids(grid, "encoder") == ((rows, columns),)
    assert encoder.token_grids(grid, "projector") == ((rows // 2, columns // 2),)


def test_control_tokens_are_all_that_stand_for_vision(encoder: VisionEncoder) -> None:
    assert set(encoder.control_tokens) == {"<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 8}, "patch_size=8"),
        ({"merge_size": 3}, "merge_size=3"),
        ({"temporal_patch_size": 1}, "temporal_patch_size=1"),
        ({"do_resize": False}, "do_resize"),
        ({"rescale_factor": 1.0}, "rescale"),
        ({"resample": 9}, "resample=9"),
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
