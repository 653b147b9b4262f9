"""Palettes like those of photographs: a few colours per picture, mostly pale, some strong."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Columns: luma, blue and red difference (ITU-R BT.601) to R, G, B.
_TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], dtype=np.float32)

# Colours vary most between orange and blue, like the light of sun and sky.
_AXES = np.array([[-0.75, 0.75], [0.3, 0.3]], dtype=np.float32)


def sample_palette(rng: np.random.Generator) -> NDArray[np.float32]:
    """Draws ``(K, 3)`` colours of one picture: luma and the two colour differences."""
    count = int(rng.integers(3, 12))
    contrast = rng.uniform(0.2, 1.0)  # of the scene: mist and snow to lamps at night
    luma = contrast * (rng.beta(1.1, 1.3, count) - 0.45) + rng.normal(0.45, 0.15)
    strength = rng.exponential(0.05, (count, 1)) * (rng.random() > 0.05)  # one picture in twenty is grey
    strength = np.where(rng.random((count, 1)) < 0.1, 3 * strength, strength)
    cast = rng.normal(0, 0.02, 2) @ _AXES
    chroma = (rng.normal(0, 1, (count, 2)) * strength) @ _AXES + cast
    return np.column_stack([luma, chroma]).astype(np.float32)


def leaf_colours(rng: np.random.Generator, palette: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """``(count, 3)`` colours, each near one of the palette."""
    chosen = palette[rng.choice(len(palette), count, p=rng.dirichlet(np.ones(len(palette))))]
    spread = rng.exponential([0.08, 0.015, 0.015])
    return (chosen + rng.normal(0, 1, (count, 3)) * spread).astype(np.float32)


def to_rgb(colours: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(…, 3)`` luma and colour differences to R, G, B; not clipped."""
    return colours @ _TO_RGB.T
