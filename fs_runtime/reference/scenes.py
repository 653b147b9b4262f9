"""Draws the scenes of the reference model: one to four coloured shapes on a textured background.

A scene is a description in fractions of the picture's side, so the same scene can be drawn at any size:
64 × 64 is what the reference model reads, larger sizes are for people. Everything is sampled from a
`numpy.random.Generator`; drawing is deterministic.

    rng = np.random.default_rng(7)
    scene = sample_scene(rng)
    image = render(scene, size=384)
"""

from dataclasses import dataclass
from functools import cache
from math import cos, pi, radians, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 36, 40),
    "orange": (246, 138, 24),
    "yellow": (246, 222, 48),
    "green": (44, 164, 70),
    "cyan": (64, 206, 220),
    "blue": (44, 84, 214),
    "purple": (136, 58, 184),
    "pink": (246, 128, 186),
}
TEXTURES = ("plain", "gradient", "noise", "stripes", "checks", "blobs")

MAX_OBJECTS = 4
SMALLEST_RADIUS = 0.1  # 6.4 pixels at 64 × 64: a star's five points are still visible
MIN_COLUMN_DISTANCE = 0.06  # of centres in x, so that the order from left to right is clear

_ROTATION = {"circle": 0, "square": 10, "triangle": 20, "star": 36, "cross": 14, "ring": 0, "heart": 20}
_COLOUR_JITTER = 12
_REACH = 1.2  # upper bound of the outlines' distance from the centre, in radii


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape. Position and radius are fractions of the picture's side, y grows downwards, angle in degrees."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Background:
    """A texture between two tones. `seed` fixes its pattern at every size."""

    texture: str
    tones: tuple[tuple[int, int, int], tuple[int, int, int]]
    frequency: float
    angle: float
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Contents of a picture. Objects are ordered from left to right."""

    objects: tuple[SceneObject, ...]
    background: Background


def sample_scene(rng: np.random.Generator, count: int | None = None) -> Scene:
    """Sample a scene of `count` objects (1 to 4, or at random).

    No two objects share both shape and colour, none overlap or touch the border, and their centres differ
    in x by at least `MIN_COLUMN_DISTANCE`.
    """
    if count is None:
        count = int(rng.choice((1, 2, 3, 4), p=(0.16, 0.26, 0.28, 0.3)))
    if not 1 <= count <= MAX_OBJECTS:
        raise ValueError(f"a scene has 1 to {MAX_OBJECTS} objects, not {count}")
    places = _sample_places(rng, count)
    kinds = _sample_kinds(rng, count)
    objects = [_sample_object(rng, *kind, *place) for kind, place in zip(kinds, places, strict=True)]
    objects.sort(key=lambda item: item.x)
    return Scene(tuple(objects), sample_background(rng))


def sample_background(rng: np.random.Generator) -> Background:
    """Sample a background: muted tones, either both dark or both light, so that every shape stands out."""
    low, high = (18, 92) if rng.random() < 0.5 else (158, 246)
    first, second = rng.integers(low, high, size=2)
    tints = rng.integers(-14, 15, size=(2, 3))
    tones = np.clip(np.array([[first], [second]]) + tints, 0, 255)
    return Background(
        texture=TEXTURES[int(rng.integers(len(TEXTURES)))],
        tones=(_rgb(tones[0]), _rgb(tones[1])),
        frequency=float(rng.uniform(2.0, 7.0)),
        angle=float(rng.uniform(0.0, pi)),
        seed=int(rng.integers(2**31)),
    )


def render(scene: Scene, size: int = 64) -> Image.Image:
    """Draw a scene as an RGB image of `size` × `size` pixels."""
    return render_with_masks(scene, size)[0]


def render_with_masks(scene: Scene, size: int = 64) -> tuple[Image.Image, NDArray[np.uint8]]:
    """Draw a scene, with a mask of each object.

    Returns the image and masks of shape (objects, size, size): 0 outside an object, 255 inside it.
    """
    image = Image.fromarray(render_background(scene.background, size))
    masks = np.zeros((len(scene.objects), size, size), dtype=np.uint8)
    for mask, item in zip(masks, scene.objects, strict=True):
        cutout, left, top = _draw_mask(item, size)
        image.paste(item.rgb, (left, top), cutout)
        mask[top : top + cutout.height, left : left + cutout.width] = np.asarray(cutout)
    return image, masks


def render_background(background: Background, size: int) -> NDArray[np.uint8]:
    """Draw a background alone, as an array of shape (size, size, 3)."""
    first, second = (np.array(tone, dtype=np.float32) for tone in background.tones)
    blend = _blend(background, size)[..., None]  # (size, size, 1)
    return np.round(first + (second - first) * blend).astype(np.uint8)


def _sample_places(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    largest = (0.34, 0.26, 0.22, 0.2)[count - 1]
    while True:
        places: list[tuple[float, float, float]] = []
        for _ in range(12 * count):
            radius = float(rng.uniform(SMALLEST_RADIUS, largest))
            margin = radius * _REACH
            x, y = (float(v) for v in rng.uniform(margin, 1 - margin, size=2))
            if all(
                abs(x - other_x) >= MIN_COLUMN_DISTANCE
                and (x - other_x) ** 2 + (y - other_y) ** 2 > (1.1 * (radius + other) + 0.01) ** 2
                for other_x, other_y, other in places
            ):
                places.append((x, y, radius))
                if len(places) == count:
                    return places


def _sample_kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    colours = tuple(COLOURS)
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        if kinds and rng.random() < 0.2:  # repeats shapes, so that there is something to count
            shape = kinds[-1][0]
        kind = (shape, colours[int(rng.integers(len(colours)))])
        if kind not in kinds:
            kinds.append(kind)
    return kinds


def _sample_object(rng: np.random.Generator, shape: str, colour: str, x: float, y: float, radius: float) -> SceneObject:
    jitter = rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, size=3)
    limit = _ROTATION[shape]
    return SceneObject(
        shape=shape,
        colour=colour,
        x=x,
        y=y,
        radius=radius,
        angle=float(rng.uniform(-limit, limit)),
        rgb=_rgb(np.clip(np.array(COLOURS[colour]) + jitter, 0, 255)),
    )


def _rgb(values: NDArray[np.int64]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


def _draw_mask(item: SceneObject, size: int) -> tuple[Image.Image, int, int]:
    """Draw one object at four times the size and average, within its bounding box only."""
    fine = 4
    radius, x, y = item.radius * size, item.x * size, item.y * size
    reach = radius * _REACH + 1
    left, top = max(int(x - reach), 0), max(int(y - reach), 0)
    right, bottom = min(int(x + reach) + 1, size), min(int(y + reach) + 1, size)
    mask = Image.new("L", ((right - left) * fine, (bottom - top) * fine))
    draw = ImageDraw.Draw(mask)
    turn = radians(item.angle)
    cosine, sine = cos(turn), sin(turn)

    def place(u: float, v: float) -> tuple[float, float]:
        across = x + radius * (u * cosine - v * sine) - left
        down = y + radius * (u * sine + v * cosine) - top
        return across * fine, down * fine

    centre_x, centre_y = place(0, 0)
    if item.shape in ("circle", "ring"):
        outer = (0.8 if item.shape == "circle" else 0.92) * radius * fine
        draw.ellipse((centre_x - outer, centre_y - outer, centre_x + outer, centre_y + outer), fill=255)
        if item.shape == "ring":
            inner = 0.5 * radius * fine
            draw.ellipse((centre_x - inner, centre_y - inner, centre_x + inner, centre_y + inner), fill=0)
    else:
        draw.polygon([place(u, v) for u, v in _outline(item.shape)], fill=255)
    return mask.reduce(fine), left, top


@cache
def _outline(shape: str) -> tuple[tuple[float, float], ...]:
    """Corners of a shape of radius 1 around the origin. Areas are similar, so that the radius measures size."""
    if shape == "square":
        return ((-0.71, -0.71), (0.71, -0.71), (0.71, 0.71), (-0.71, 0.71))
    if shape == "triangle":
        return tuple((1.15 * sin(a), 0.12 - 1.15 * cos(a)) for a in (0, 2 * pi / 3, 4 * pi / 3))
    if shape == "star":
        reach = [1.12 if corner % 2 == 0 else 0.48 for corner in range(10)]
        return tuple((r * sin(pi * k / 5), -r * cos(pi * k / 5)) for k, r in enumerate(reach))
    if shape == "cross":
        long, wide = 0.98, 0.33
        corner = ((wide, -long), (wide, -wide), (long, -wide))
        turns = ((1, 0), (0, 1), (-1, 0), (0, -1))  # cosine and sine of the four quarter turns
        return tuple((u * c - v * s, u * s + v * c) for c, s in turns for u, v in corner)
    if shape == "heart":
        steps = [2 * pi * k / 48 for k in range(48)]
        return tuple(
            (
                0.0575 * 16 * sin(t) ** 3,
                -0.0575 * (13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) - 0.08,
            )
            for t in steps
        )
    raise ValueError(f"no outline for {shape!r}")


def _blend(background: Background, size: int) -> NDArray[np.float32]:
    """Weight of the second tone at each pixel, in [0, 1]; shape (size, size)."""
    if background.texture == "plain":
        return np.zeros((size, size), dtype=np.float32)
    if background.texture == "noise":
        return _noise(background, size)
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    across, down = centres[None, :], centres[:, None]
    if background.texture == "blobs":
        blend = np.zeros((size, size), dtype=np.float32)
        for x, y, spread in np.random.default_rng(background.seed).uniform(0.0, 1.0, size=(6, 3)):
            width = np.float32(2 * (0.06 + 0.1 * spread) ** 2)
            blend += np.exp(-((across - np.float32(x)) ** 2) / width) * np.exp(-((down - np.float32(y)) ** 2) / width)
        return np.minimum(blend, np.float32(1))
    cosine, sine = cos(background.angle), sin(background.angle)
    along = across * np.float32(cosine) + down * np.float32(sine)  # (size, size)
    if background.texture == "gradient":
        low, high = min(0.0, cosine), max(cosine, 0.0) + sine  # the range of `along` over the unit square
        return (along - np.float32(low)) / np.float32(high - low)
    turns = np.float32(2 * pi * background.frequency)
    wave = np.sin(turns * along)
    if background.texture == "checks":
        wave = wave * np.sin(turns * (down * np.float32(cosine) - across * np.float32(sine)))
    blend = np.float32(0.5) + np.float32(0.5) * np.clip(wave * np.float32(3), -1, 1)
    return blend.astype(np.float32)


def _noise(background: Background, size: int) -> NDArray[np.float32]:
    """Random values on a coarse and a fine lattice, interpolated to the picture's size."""
    rng = np.random.default_rng(background.seed)
    total = np.zeros((size, size), dtype=np.float32)
    for cells, weight in ((6, 0.6), (24, 0.4)):
        lattice = Image.fromarray(rng.integers(0, 256, size=(cells, cells), dtype=np.uint8))
        enlarged = lattice.resize((size, size), Image.Resampling.BICUBIC)
        total += np.float32(weight / 255) * np.asarray(enlarged, dtype=np.float32)
    return total
