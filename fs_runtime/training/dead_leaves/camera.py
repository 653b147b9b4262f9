"""A simple camera: light, lens, sensor and file format."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

_GAMMA = 2.2
_JPEG_SHARE = 0.3
_SOFT_SHARE = 0.25


def blur(picture: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Blurs ``(H, W, C)`` by a Gaussian of ``sigma`` pixels."""
    if sigma < 0.2:
        return picture
    return np.asarray(gaussian_filter(picture, (sigma, sigma, 0), mode="nearest", truncate=3), dtype=np.float32)


def illumination(rng: np.random.Generator, side: int) -> NDArray[np.float32]:
    """``(side, side, 1)`` factors of light that falls off in a random direction and towards the border."""
    strength, angle, bow = rng.exponential(0.15), rng.uniform(0, 2 * np.pi), rng.exponential(0.1)
    position = np.linspace(-1, 1, side, dtype=np.float32)
    ramp = np.cos(angle) * position[None, :] + np.sin(angle) * position[:, None]
    radius = position[None, :] ** 2 + position[:, None] ** 2
    return np.asarray(np.exp(strength * ramp - bow * radius)[..., None], dtype=np.float32)


def expose(rng: np.random.Generator, light: NDArray[np.float32], oversampling: int) -> NDArray[np.uint8]:
    """Turns linear light ``(S, S, 3)`` into a gamma-coded 8-bit picture with ``S / oversampling`` pixels a side."""
    if rng.random() < _SOFT_SHARE:  # out of focus, or motion blur
        light = blur(light, float(rng.uniform(0.4, 2.0)) * oversampling)
    side = len(light) // oversampling
    pixels = light.reshape(side, oversampling, side, oversampling, 3).mean(axis=(1, 3))
    coded = np.clip(pixels, 0, None) ** np.float32(1 / _GAMMA)
    contrast, centre = rng.uniform(0.85, 1.25), rng.uniform(0.35, 0.55)
    coded = (coded - centre) * contrast + centre
    picture = Image.fromarray((np.clip(coded, 0, 1) * 255 + 0.5).astype(np.uint8))
    if rng.random() < _JPEG_SHARE:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(80, 98)), subsampling=int(rng.integers(0, 3)))
        picture = Image.open(file)
    return np.array(picture, dtype=np.uint8)


def to_light(coded: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gamma-coded values in [0, 1] to linear light."""
    return np.clip(coded, 0, 1) ** np.float32(_GAMMA)
