import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from fs_runtime.preprocessing.resize import Filter, ResizeCrop, matrix_norm, resize_matrix

PILLOW = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


@pytest.mark.parametrize("filter", PILLOW)
@pytest.mark.parametrize(("source", "target"), [(40, 40), (100, 33), (33, 100), (1, 7), (1344, 336), (97, 96)])
def test_matrix_is_pillows_float_resize(filter: Filter, source: int, target: int) -> None:
    row = np.random.default_rng(source).uniform(0, 1, source).astype(np.float32)
    image = Image.fromarray(np.tile(row, (3, 1)))
    expected = np.asarray(image.resize((target, 3), PILLOW[filter]))[1]
    np.testing.assert_allclose(resize_matrix(source, target, filter) @ row, expected, atol=2e-6)


@pytest.mark.parametrize(("source", "norm"), [(1344, 0.253), (672, 0.5035), (224, 1.504), (336, 1.0)])
def test_spectral_norms_of_the_specification(source: int, norm: float) -> None:
    image = np.zeros((source, source, 3), np.uint8)
    assert ResizeCrop(336, (336, 336))(image).spectral_norm == pytest.approx(norm, abs=5e-4)


@pytest.mark.parametrize("size", [(70, 90), (90, 70), (30, 200), (8, 8), (64, 64)])
def test_spectral_norm_is_that_of_the_whole_map_and_bounds_it(size: tuple[int, int]) -> None:
    geometry = ResizeCrop(16, (16, 16))
    height, width = size
    gain = geometry(np.zeros((*size, 3), np.uint8)).spectral_norm
    # The map on one channel, column by column; zero images stay clear of the clipping.
    rows = resize_matrix(height, geometry.resized_size(*size)[0]).toarray()
    columns = resize_matrix(width, geometry.resized_size(*size)[1]).toarray()
    top, left = (rows.shape[0] - 16) // 2, (columns.shape[0] - 16) // 2
    whole = np.kron(rows[top : top + 16], columns[left : left + 16])
    assert gain == pytest.approx(np.linalg.svd(whole, compute_uv=False)[0], rel=1e-9)

    rng = np.random.default_rng(0)
    for _ in range(20):
        a = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        b = np.clip(a.astype(int) + rng.integers(-9, 10, a.shape), 0, 255).astype(np.uint8)
        before = np.linalg.norm((a.astype(float) - b.astype(float)) / 255)
        after = np.linalg.norm(geometry(a).pixels - geometry(b).pixels)
        assert after <= gain * before * (1 + 1e-5)


@pytest.mark.parametrize("size", [(64, 64), (70, 90), (90, 70), (61, 200)])
def test_equals_the_familys_processor_up_to_its_rounding(size: tuple[int, int]) -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    config = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}, "resample": 3}
    processor = CLIPImageProcessorPil(**config, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(processor(images=Image.fromarray(image), return_tensors="np")["pixel_values"][0])
    ours = ResizeCrop.from_processor_config(config)(image).pixels
    tolerance = 1e-6 if size == (64, 64) else 1.1 / 255  # two roundings of half a step each
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= tolerance


def test_one_pixel_and_extreme_shapes() -> None:
    geometry = ResizeCrop(16, (16, 16))
    for size in [(1, 1), (1, 500), (500, 1)]:
        out = geometry(np.full((*size, 3), 51, np.uint8))
        assert out.pixels.shape == (3, 16, 16)
        np.testing.assert_allclose(out.pixels, 0.2, atol=1e-5)
        assert np.isfinite(out.spectral_norm)


def test_crop_larger_than_the_image_pads_with_zeros() -> None:
    out = ResizeCrop(None, (10, 6))(np.full((6, 8, 3), 255, np.uint8)).pixels
    assert out.shape == (3, 10, 6)
    assert out[:, 2:8].min() == 1.0
    assert out[:, :2].max() == out[:, 8:].max() == 0.0


@pytest.mark.parametrize(
    "config",
    [{"do_pad": True}, {"rescale_factor": 1.0}, {"size": {"longest_edge": 20}}, {"resample": 5}],
)
def test_a_geometry_that_cannot_be_expressed_is_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        ResizeCrop.from_processor_config(config)


@pytest.mark.parametrize("filter", PILLOW)
@pytest.mark.parametrize(("source", "target"), [(520, 600), (800, 560), (520, 1500), (520, 520)])
def test_norm_of_a_large_map_is_a_close_upper_bound(filter: Filter, source: int, target: int) -> None:
    matrix = resize_matrix(source, target, filter)
    gram = matrix @ matrix.T if source >= target else matrix.T @ matrix
    exact = float(np.linalg.eigvalsh(gram.toarray())[-1]) ** 0.5
    assert exact <= matrix_norm(matrix) <= 1.015 * exact


@pytest.mark.parametrize(("source", "target"), [(400, 336), (70, 336), (512, 224), (90, 90)])
def test_norm_of_a_small_map_is_not_below_any_stretch_of_a_vector(source: int, target: int) -> None:
    matrix = resize_matrix(source, target).toarray()
    found = matrix_norm(resize_matrix(source, target))
    _, values, right = np.linalg.svd(matrix)
    vector = [Fraction(value) for value in right[0].tolist()]  # exact from here on
    rows = [[Fraction(value) for value in row[row != 0].tolist()] for row in matrix]
    places = [np.flatnonzero(row) for row in matrix]
    image = [
        sum(a * vector[j] for a, j in zip(row, place, strict=True)) for row, place in zip(rows, places, strict=True)
    ]
    assert Fraction(found) ** 2 * sum(v * v for v in vector) >= sum(v * v for v in image)
    assert found <= (1 + 2e-12) * values[0]


def test_a_map_that_copies_pixels_has_norm_one() -> None:
    assert matrix_norm(resize_matrix(90, 90)) == 1.0
    assert matrix_norm(resize_matrix(90, 90, rows=(10, 40))) == 1.0
    assert matrix_norm(resize_matrix(90, 180, "nearest")) == pytest.approx(2**0.5, rel=2e-12)


def test_a_very_large_image_costs_little() -> None:
    """Clients choose the sizes: an axis of 14,000 pixels needs no matrix of 14,000 by 20,000."""
    matrix = resize_matrix(20_000, 14_000)
    assert matrix.nnz < 100_000
    assert 0.8 < matrix_norm(matrix) < 0.9


@pytest.mark.parametrize(("source", "target", "cropped"), [(90, 33, 20), (20, 64, 15), (7, 7, 4), (50, 51, 50)])
@pytest.mark.parametrize("filter", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_rows_of_a_crop_are_those_of_the_whole(source: int, target: int, cropped: int, filter: Filter) -> None:
    first = (target - cropped) // 2
    whole = resize_matrix(source, target, filter).toarray()
    part = resize_matrix(source, target, filter, (first, first + cropped)).toarray()
    np.testing.assert_array_equal(part, whole[first : first + cropped])


def test_a_long_and_narrow_image_costs_what_its_crop_costs() -> None:
    geometry = ResizeCrop(resize=64, crop=(64, 64))
    tracemalloc.start()
    geometry(np.zeros((4, 60_000, 3), np.uint8))  # 960,000 pixels wide before the crop
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6
