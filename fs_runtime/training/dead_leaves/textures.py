"""Textures of leaves: noise of many scales and directions, stripes and spots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.float32]


def sample_fields(rng: np.random.Generator, side: int, count: int) -> Field:
    """Draws ``(count, side, side)`` periodic fields of mean 0 and standard deviation 1."""
    return np.stack([_field(rng, side) for _ in range(count)])


def _field(rng: np.random.Generator, side: int) -> Field:
    kind = rng.random()
    noise = _coloured_noise(rng, side)
    if kind < 0.55:
        return noise
    if kind < 0.75:  # spots, cracks and grain: the same with sharp edges
        return _normalised(np.tanh(rng.uniform(1, 8) * (noise - rng.normal(0, 0.7))))
    return _stripes(rng, side, noise)


def _coloured_noise(rng: np.random.Generator, side: int) -> Field:
    """Gaussian noise whose power falls with frequency, faster in one direction than in the other."""
    angle, stretch = rng.uniform(0, np.pi), np.exp(rng.exponential(0.5))
    fy = np.fft.fftfreq(side)[:, None].astype(np.float32)
    fx = np.fft.rfftfreq(side)[None, :].astype(np.float32)
    u = (np.cos(angle) * fx + np.sin(angle) * fy) * np.float32(stretch)
    v = np.cos(angle) * fy - np.sin(angle) * fx
    lowest = np.float32(np.exp(rng.uniform(np.log(1 / side), np.log(0.2))))
    power = np.float32(rng.uniform(1.0, 3.0))
    gain = (u**2 + v**2 + lowest**2) ** (-power / 2)
    gain[0, 0] = 0
    white = rng.standard_normal((side, side), dtype=np.float32)
    return _normalised(fft.irfft2(fft.rfft2(white) * gain, s=(side, side)))


def _stripes(rng: np.random.Generator, side: int, warp: Field) -> Field:
    """A wave in one direction, bent by noise, from soft to square."""
    waves = np.exp(rng.uniform(np.log(4), np.log(side / 5)))
    angle = rng.uniform(0, np.pi)
    kx, ky = round(waves * np.cos(angle)), round(waves * np.sin(angle))  # integers, so that the field is periodic
    position = np.arange(side, dtype=np.float32) * np.float32(2 * np.pi / side)
    phase = kx * position[None, :] + ky * position[:, None] + np.float32(rng.exponential(0.7)) * warp
    return _normalised(np.tanh(np.float32(rng.uniform(0.3, 4)) * np.sin(phase)))


def _normalised(field: NDArray[np.floating]) -> Field:
    centred = field - field.mean()
    return np.asarray(centred / max(float(centred.std()), 1e-6), dtype=np.float32)
