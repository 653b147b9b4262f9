"""One picture of dead leaves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fs_runtime.training.dead_leaves.camera import blur, expose, illumination, to_light
from fs_runtime.training.dead_leaves.colours import leaf_colours, sample_palette, to_rgb
from fs_runtime.training.dead_leaves.shapes import Leaves, paint, sample_bundle, sample_leaves, stacked
from fs_runtime.training.dead_leaves.textures import Field, sample_fields

VERSION = 2  # of the generator, whose pictures depend on it; the cards of purifiers record it
_OVERSAMPLING = 2
_FIELDS = 6
_BUNDLES = 0.8  # mean number of bundles of parallel lines in a layer
_PLAIN_SHARE = 0.35  # share of the leaves without texture


def leaves_picture(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Draws a picture: ``(side, side, 3)`` RGB of 8 bits.

    One to three layers of leaves lie at different depths, and each layer but one is more or less out of focus.
    """
    fine = side * _OVERSAMPLING
    palette = sample_palette(rng)
    fields = sample_fields(rng, fine, _FIELDS)
    layers = int(rng.choice([1, 2, 3], p=[0.45, 0.35, 0.2]))
    sharp = int(rng.integers(layers))
    largest = fine * float(np.exp(rng.uniform(np.log(0.15), np.log(1.0))))
    smallest = float(np.exp(rng.uniform(np.log(2), np.log(64))))
    light = np.zeros((fine, fine, 3), np.float32)
    for layer in range(layers):
        # The hindmost layer fills the picture; those in front leave gaps.
        cover = 4.0 if layer == 0 else float(rng.uniform(0.2, 1.0))
        leaves = sample_leaves(rng, fine, cover, min(smallest * (1 if layer == sharp else 2), largest / 2), largest)
        bundles = [sample_bundle(rng, fine, int(rng.integers(2, 16))) for _ in range(rng.poisson(_BUNDLES))]
        leaves = stacked([leaves, *bundles])
        numbers = paint(leaves, fine)
        shaded = to_light(to_rgb(_shade(rng, leaves, numbers, palette, fields)))
        visible = (numbers > 0)[..., None].astype(np.float32) if layer else np.ones((fine, fine, 1), np.float32)
        out_of_focus = 0.0 if layer == sharp else float(rng.exponential(3.0)) * _OVERSAMPLING
        front = blur(np.concatenate([shaded * visible, visible], axis=-1), out_of_focus)
        light = front[..., :3] + (1 - front[..., 3:]) * light
    return expose(rng, light * illumination(rng, fine), _OVERSAMPLING)


def _shade(
    rng: np.random.Generator,
    leaves: Leaves,
    numbers: NDArray[np.int32],
    palette: NDArray[np.float32],
    fields: Field,
) -> NDArray[np.float32]:
    """Luma and colour differences ``(S, S, 3)`` of the leaf at each pixel: its colour, a gradient and a texture."""
    count, side = len(leaves.radii) + 1, len(numbers)  # number 0 is the background between the leaves
    colour = leaf_colours(rng, palette, count)
    slope = rng.normal(0, 1, (count, 2)) * rng.exponential(0.07, (count, 1))
    radius = np.concatenate([[side], leaves.radii])
    centre = np.concatenate([[[side / 2, side / 2]], leaves.centres])
    slope = (slope / np.maximum(radius, 8)[:, None]).astype(np.float32)
    level = -(slope * centre).sum(axis=1).astype(np.float32)
    amplitude = rng.exponential(rng.exponential(0.07), count) * (rng.random(count) > _PLAIN_SHARE)
    tint = np.column_stack([np.ones(count), rng.normal(0, 0.15, (count, 2))])
    tint = (tint * np.minimum(amplitude, 0.35)[:, None]).astype(np.float32)
    field = rng.integers(0, len(fields), count).astype(np.int32)
    zoom = rng.integers(1, 4, count).astype(np.int32)
    shift = rng.integers(0, side, (count, 2)).astype(np.int32)

    y, x = np.arange(side, dtype=np.int32)[:, None], np.arange(side, dtype=np.int32)[None, :]
    scale = zoom[numbers]
    rows = (y * scale + shift[numbers, 0]) % side
    columns = (x * scale + shift[numbers, 1]) % side
    texture = fields.reshape(-1)[(field[numbers] * side + rows) * side + columns]
    shaded: NDArray[np.float32] = colour[numbers] + tint[numbers] * texture[..., None]
    shaded[..., 0] += np.clip(level[numbers] + slope[numbers, 0] * x + slope[numbers, 1] * y, -0.3, 0.3)
    return shaded


def contact_sheet(seed: int, rows: int = 4, columns: int = 6, side: int = 256) -> NDArray[np.uint8]:
    """A grid of example pictures, to look at: ``(rows · side, columns · side, 3)``."""
    pictures = [leaves_picture(np.random.default_rng((seed, number)), side) for number in range(rows * columns)]
    grid = np.stack(pictures).reshape(rows, columns, side, side, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
