"""Outlines of leaves: ellipses, blobs, polygons and strips with a power law of sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

VERTICES = 32  # of every outline; polygons with fewer corners repeat them
_EXPONENT = 3.0  # of the density of radii; this one makes pictures scale-invariant
_KINDS = ("ellipse", "blob", "polygon", "strip")
_KIND_WEIGHTS = (0.3, 0.3, 0.25, 0.15)
_STRAIGHT_SHARE = 0.4  # of the strips
_HARMONICS = np.arange(2, 7)


@dataclass(frozen=True, slots=True)
class Leaves:
    """Leaves of one layer, from the hindmost to the foremost.

    Attributes:
        centres: ``(N, 2)`` x and y in pixels.
        radii: ``(N,)`` in pixels.
        outlines: ``(N, VERTICES, 2)`` x and y in pixels.
        looks: ``(N,)`` number, from 0, of the leaf whose colour and texture each leaf has; mostly its own.
    """

    centres: NDArray[np.float32]
    radii: NDArray[np.float32]
    outlines: NDArray[np.float32]
    looks: NDArray[np.int32]


def sample_leaves(rng: np.random.Generator, side: int, cover: float, smallest: float, largest: float) -> Leaves:
    """Draws as many leaves as cover a square of ``side`` pixels ``cover`` times over, in expectation.

    Args:
        rng: Source of randomness.
        side: Of the picture, pixels.
        cover: Sum of the leaves' areas divided by the picture's area.
        smallest: Smallest radius, pixels.
        largest: Largest radius, pixels.
    """
    reach = side + 2 * largest  # centres also lie outside the picture, or its border would have fewer leaves
    mean_area = np.pi * 2 * smallest**2 * np.log(largest / smallest)  # of the truncated power law, nearly
    count = max(8, int(cover * reach**2 / mean_area))
    power = 1 - _EXPONENT
    uniform = rng.random(count)
    radii = (smallest**power + uniform * (largest**power - smallest**power)) ** (1 / power)
    centres = rng.uniform(-largest, side + largest, (count, 2))
    near = (np.abs(centres - side / 2) < side / 2 + 1.5 * radii[:, None]).all(axis=1)  # the rest is out of sight
    radii, centres = radii[near], centres[near]
    outlines = _outlines(rng, len(radii)) * radii[:, None, None] + centres[:, None]
    return _leaves(centres, radii, outlines, np.arange(len(radii)))


def sample_bundle(rng: np.random.Generator, side: int, count: int) -> Leaves:
    """Draws parallel lines across the picture at equal distances, such as wires, blinds, planks and fences."""
    angle = rng.uniform(0, np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    distance = side * float(np.exp(rng.uniform(np.log(0.01), np.log(0.12))))
    width = distance * rng.uniform(0.1, 0.6)
    length = side * float(np.exp(rng.uniform(np.log(0.2), np.log(1.5))))
    place = np.arange(count) - (count - 1) / 2
    centres = rng.uniform(0, side, 2) + place[:, None] * distance * across
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]).repeat(VERTICES // 4, axis=0)
    outline = corners[:, :1] * along * length / 2 + corners[:, 1:] * across * width / 2
    outlines = centres[:, None] + outline
    alike = rng.random() < 0.6
    return _leaves(centres, np.full(count, length / 2), outlines, np.arange(count) * (not alike))


def stacked(layers: Sequence[Leaves]) -> Leaves:
    """Joins the leaves of several layers; the first layer is hindmost."""
    starts = np.cumsum([0, *(len(leaves.radii) for leaves in layers)])
    return Leaves(
        np.concatenate([leaves.centres for leaves in layers]),
        np.concatenate([leaves.radii for leaves in layers]),
        np.concatenate([leaves.outlines for leaves in layers]),
        np.concatenate([leaves.looks + start for leaves, start in zip(layers, starts, strict=False)]).astype(np.int32),
    )


def paint(leaves: Leaves, side: int) -> NDArray[np.int32]:
    """Look of the foremost leaf at each pixel of ``(side, side)``, from 1; 0 where there is none."""
    canvas = Image.new("I", (side, side))
    draw = ImageDraw.Draw(canvas)
    outlines = leaves.outlines.reshape(len(leaves.radii), -1).tolist()
    for look, outline in zip(leaves.looks.tolist(), outlines, strict=True):
        draw.polygon(outline, fill=look + 1)
    return np.asarray(canvas, dtype=np.int32)


def _leaves(
    centres: NDArray[np.float64], radii: NDArray[np.float64], outlines: NDArray[np.float64], looks: NDArray[np.int64]
) -> Leaves:
    return Leaves(
        centres.astype(np.float32), radii.astype(np.float32), outlines.astype(np.float32), looks.astype(np.int32)
    )


def _outlines(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """``(count, VERTICES, 2)`` outlines around the origin with about the area of a disc of radius 1."""
    kinds = rng.choice(len(_KINDS), count, p=_KIND_WEIGHTS)
    makers = (_ellipses, _blobs, _polygons, _strips)
    outlines = np.empty((count, VERTICES, 2))
    for kind, maker in enumerate(makers):
        chosen = kinds == kind
        outlines[chosen] = maker(rng, int(chosen.sum()))
    angle = rng.uniform(0, 2 * np.pi, count)
    cosine, sine = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, y = outlines[..., 0], outlines[..., 1]
    return np.stack([cosine * x - sine * y, sine * x + cosine * y], axis=-1)


def _circle() -> NDArray[np.float64]:
    return np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)


def _ellipses(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    stretch = np.exp(rng.normal(0, 0.35, (count, 1)))
    return np.stack([np.cos(_circle()) * stretch, np.sin(_circle()) / stretch], axis=-1)


def _blobs(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Closed curves whose radius is a random trigonometric polynomial."""
    amplitude = rng.normal(0, 1, (count, len(_HARMONICS), 1)) * (0.35 / _HARMONICS[:, None])
    phase = rng.uniform(0, 2 * np.pi, (count, len(_HARMONICS), 1))
    waves = amplitude * np.cos(_HARMONICS[:, None] * _circle() + phase)
    radius = np.clip(1 + waves.sum(axis=1), 0.2, 2)
    stretch = np.exp(rng.normal(0, 0.25, (count, 1)))
    return np.stack([radius * np.cos(_circle()) * stretch, radius * np.sin(_circle()) / stretch], axis=-1)


def _polygons(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Three to six corners on an ellipse; four at equal angles are rectangles and rhombs."""
    corners = rng.integers(3, 7, (count, 1))
    which = (np.arange(VERTICES) * corners) // VERTICES
    jitter = rng.uniform(-0.35, 0.35, (count, 6)) * (rng.random((count, 1)) < 0.6)
    angle = 2 * np.pi * (which + np.take_along_axis(jitter, which, axis=1)) / corners + np.pi / 4
    stretch = np.exp(rng.normal(0, 0.4, (count, 1)))
    return 1.25 * np.stack([np.cos(angle) * stretch, np.sin(angle) / stretch], axis=-1)


def _strips(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Bent bands, like stems, wires and edges of objects."""
    half = VERTICES // 2
    along = np.linspace(-1, 1, half)
    length = np.exp(rng.uniform(np.log(2), np.log(8), (count, 1)))
    width = 0.8 / length
    bend = rng.normal(0, 0.35, (count, 1)) * length * (rng.random((count, 1)) > _STRAIGHT_SHARE)
    middle = bend * (along**2 - 1 / 3)
    taper = 1 - rng.uniform(0, 1, (count, 1)) * (along + 1) / 2
    x = np.broadcast_to(length * along, (count, half))
    there = np.stack([x, middle + width * taper], axis=-1)
    back = np.stack([x, middle - width * taper], axis=-1)[:, ::-1]
    return np.concatenate([there, back], axis=1)
