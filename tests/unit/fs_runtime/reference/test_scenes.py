"""Drawing of scenes is deterministic, and the picture shows the objects of the scene."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from fs_runtime.reference.scenes import (
    COLOURS,
    MIN_COLUMN_DISTANCE,
    SHAPES,
    TEXTURES,
    Background,
    Scene,
    SceneObject,
    render,
    render_background,
    render_with_masks,
    sample_scene,
)


def scenes(count=60, seed=1):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def one_object(shape, radius=0.3, background=0):
    item = SceneObject(shape, "red", 0.5, 0.5, radius, 0.0, (255, 0, 0))
    tone = (background, background, background)
    return Scene((item,), Background("plain", (tone, tone), 1.0, 0.0, 0))


def test_same_seed_draws_the_same_pictures():
    assert scenes(5) == scenes(5)
    for first, second in zip(scenes(5), scenes(5), strict=True):
        assert np.array_equal(render(first), render(second))
    assert scenes(5, seed=1) != scenes(5, seed=2)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_scene_has_as_many_objects_as_asked(count):
    rng = np.random.default_rng(0)
    assert all(len(sample_scene(rng, count).objects) == count for _ in range(10))


@pytest.mark.parametrize("count", [0, 5])
def test_other_counts_are_refused(count):
    with pytest.raises(ValueError, match="1 to 4"):
        sample_scene(np.random.default_rng(0), count)


def test_objects_are_distinct_and_ordered_from_left_to_right():
    for scene in scenes():
        assert len({(o.shape, o.colour) for o in scene.objects}) == len(scene.objects)
        for left, right in pairwise(scene.objects):
            assert right.x - left.x >= MIN_COLUMN_DISTANCE


def test_objects_neither_overlap_nor_leave_the_picture():
    for scene in scenes():
        _, masks = render_with_masks(scene, 128)
        inside = masks > 127
        for first, second in combinations(inside, 2):
            assert not (first & second).any()
        assert not inside[:, [0, -1], :].any()
        assert not inside[:, :, [0, -1]].any()


def test_every_shape_colour_and_texture_comes_up():
    drawn = scenes(400)
    assert {o.shape for scene in drawn for o in scene.objects} == set(SHAPES)
    assert {o.colour for scene in drawn for o in scene.objects} == set(COLOURS)
    assert {scene.background.texture for scene in drawn} == set(TEXTURES)


def test_masks_say_where_the_object_is():
    image, masks = render_with_masks(one_object("square"), 64)
    pixels = np.asarray(image)
    assert np.array_equal(pixels[masks[0] == 255], np.tile([255, 0, 0], ((masks[0] == 255).sum(), 1)))
    assert not pixels[masks[0] == 0].any()
    side = 2 * 0.71 * 0.3 * 64
    assert (masks[0] / 255).sum() == pytest.approx(side**2, rel=0.06)


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_are_smooth(shape):
    _, masks = render_with_masks(one_object(shape), 64)
    assert ((masks > 20) & (masks < 235)).sum() >= 10


@pytest.mark.parametrize("shape", SHAPES)
def test_areas_are_alike_so_that_radius_compares_sizes(shape):
    area = render_with_masks(one_object(shape), 256)[1].astype(float).sum() / 255 / (0.3 * 256) ** 2
    assert 1.3 < area < 2.6  # the area of a shape of radius 1; a circle's is 0.8² π = 2.01


def test_a_larger_picture_shows_the_same_scene():
    for scene in scenes(12):
        small = np.asarray(render(scene, 64), dtype=float)
        large = np.asarray(render(scene, 256), dtype=float).reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(small - large).mean() < 4


@pytest.mark.parametrize("texture", TEXTURES)
def test_backgrounds_stay_between_their_tones(texture):
    background = Background(texture, ((40, 50, 60), (90, 80, 70)), 4.0, 1.0, 5)
    pixels = render_background(background, 96)
    assert pixels.shape == (96, 96, 3)
    assert (pixels >= (40, 50, 60)).all()
    assert (pixels <= (90, 80, 70)).all()
    assert (len(np.unique(pixels)) > 3) == (texture != "plain")
