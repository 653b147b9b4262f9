"""Sizes and grids that adapters choose from an image's size are those of the families' own processors."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import (
    get_all_supported_aspect_ratios,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)
from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

from fs_runtime.encoders import CheckpointError, load_family
from fs_runtime.encoders.families import FAMILIES, family_of
from fs_runtime.encoders.idefics3 import SplitTiling
from fs_runtime.encoders.mllama import CanvasFit
from fs_runtime.encoders.pixtral import FitPatches

SIDES = st.integers(1, 4000)


@given(SIDES, SIDES)
@settings(max_examples=300, deadline=None)
def test_llamas_canvas_and_size(height: int, width: int) -> None:
    fit = CanvasFit(560, 4)
    rows, columns = get_optimal_tiled_canvas(height, width, 4, 560)
    assert fit.canvas(height, width) == (rows // 560, columns // 560)
    assert fit.size(height, width) == get_image_size_fit_to_canvas(height, width, rows, columns, 560)
    assert fit.canvases == get_all_supported_aspect_ratios(4)


@given(SIDES, SIDES)
@settings(max_examples=300, deadline=None)
def test_pixtrals_size(height: int, width: int) -> None:
    ours = FitPatches(16, 1024).size(height, width)
    image = np.zeros((height, width, 1), np.uint8)
    theirs = get_resize_output_image_size(image, (1024, 1024), (16, 16), input_data_format="channels_last")
    assert ours == tuple(max(16, side) for side in theirs)  # theirs has nothing left of a very thin image


@given(st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_idefics_tiles(height: int, width: int) -> None:
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 52}, max_image_size={"longest_edge": 14}, return_row_col_info=True
    )
    image = np.zeros((height, width, 3), np.uint8)
    theirs = processor(image, return_tensors="pt", input_data_format="channels_last")
    down, across = SplitTiling(14, 52).canvas(height, width)
    assert (down, across) == (theirs["rows"][0][0], theirs["cols"][0][0])
    x = SplitTiling(14, 52)(image)
    assert x.pixels.shape == tuple(theirs["pixel_values"][0].shape) == (down * across + 1, 3, 14, 14)


def test_an_image_of_one_tile_is_seen_once() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    for tiling in (SplitTiling(56, 56), SplitTiling(56, 168, split=False)):
        assert tiling(picture).pixels.shape == (1, 3, 56, 56)
        assert tiling.canvas(30, 20) == (1, 1)


def test_llamas_image_lies_in_the_top_left_corner_of_the_canvas() -> None:
    white = np.full((100, 300, 3), 255, np.uint8)
    x = CanvasFit(56, 4)(white)
    height, width = CanvasFit(56, 4).size(100, 300)
    assert x.pixels.shape[1:] == tuple(56 * tiles for tiles in CanvasFit(56, 4).canvas(100, 300))
    assert x.pixels[:, :height, :width].min() > 0.9999
    assert math.isclose(float(x.pixels.sum()), 3 * height * width, rel_tol=1e-4)


def test_a_llava_with_a_pixtral_tower_is_a_pixtral() -> None:
    config = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": {"model_type": "pixtral"},
    }
    assert family_of(config) is FAMILIES["pixtral"]
    assert family_of({name: config[name] for name in ("architectures", "vision_config")}) is FAMILIES["pixtral"]
    assert family_of(config | {"vision_config": {"model_type": "clip_vision_model"}}) is FAMILIES["llava"]


@pytest.mark.parametrize(
    ("file", "advice"),
    [("params.json", "transformers' format"), ("checkpoint.pt", "openai/clip-vit-large-patch14 --language-model none")],
)
def test_other_formats_are_refused_with_advice(tmp_path: Path, file: str, advice: str) -> None:
    if file.endswith(".pt"):
        torch.save({}, tmp_path / file)
    else:
        (tmp_path / file).write_text("{}")
    with pytest.raises(CheckpointError, match="config") as refused:
        load_family(str(tmp_path))
    assert advice in str(refused.value)
