"""Feature maps of Gaussian noise whose smoothed feature, spread and reaction to an attack are known exactly."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive, ndtr
from scipy.stats import binom

from fs_runtime.certificate import worst_case_feature

Array = NDArray[np.float64]


def allowed_failures(alpha: float, runs: int) -> int:
    """Failures that a statement whose failure rate is alpha exceeds in one test of a thousand."""
    return int(binom.isf(1e-3, runs, alpha))


@dataclass(frozen=True)
class Law:
    """A unit feature f of the noise, σ = 1.

    ``sample(rng, shape, c)`` draws f at the image that an attack of size c reaches, ``shape + (dimension,)``, and
    ``mean(c)`` is g there. ``across`` and ``along`` are the variances of f at the image itself. ``hardest`` is an
    attack at which a bound fails as soon as its bound of ρ does, if there is one.
    """

    name: str
    sample: Callable[[np.random.Generator, tuple[int, int], float], Array]
    mean: Callable[[float], Array]
    across: float
    along: float
    hardest: float = 1.0

    @property
    def norm(self) -> float:
        """ρ."""
        return float(np.linalg.norm(self.mean(0.0)))

    def cosine(self, size: float) -> float:
        """cos(g(x), g(x')) after an attack of this size."""
        here, there = self.mean(0.0), self.mean(size)
        return float(here @ there / np.linalg.norm(here) / np.linalg.norm(there))


def rotations(speeds: Array) -> Law:
    """K turning planes, (cos s_k z_k, sin s_k z_k) / √K; the attack moves all z_k, the more the faster they turn."""
    kept = np.exp(-(speeds**2) / 2)
    direction = speeds * kept / np.linalg.norm(speeds * kept)
    scale = np.sqrt(len(speeds))

    def sample(rng: np.random.Generator, shape: tuple[int, int], size: float) -> Array:
        angle = speeds * (rng.standard_normal((*shape, len(speeds))) + size * direction)
        return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1) / scale

    def mean(size: float) -> Array:
        angle = speeds * size * direction
        return np.concatenate([kept * np.cos(angle), kept * np.sin(angle)]) / scale

    of_sine, of_cosine = (1 - kept**4) / 2, (1 - kept**2) ** 2 / 2
    along = float((kept**2 * of_cosine).sum() / (kept**2).sum() / len(speeds))
    name = f"{len(speeds)} rotations, ρ = {np.sqrt(np.mean(kept**2)):.2f}"
    return Law(name, sample, mean, float(of_sine.max() / len(speeds)), along)


def half_space(threshold: float) -> Law:
    """u on one side of a hyperplane and -u beyond it, after Neyman and Pearson: beyond the reach g turns around."""

    def sample(rng: np.random.Generator, shape: tuple[int, int], size: float) -> Array:
        along = np.where(rng.standard_normal(shape) + size <= threshold, 1.0, -1.0)
        return np.stack([along, np.zeros(shape)], axis=-1)

    def mean(size: float) -> Array:
        return np.array([2 * ndtr(threshold - size) - 1, 0.0])

    return Law(
        f"half-space, p = {ndtr(-threshold):.3g}",
        sample,
        mean,
        0.0,
        float(1 - mean(0.0)[0] ** 2),
        threshold * (1 + 1e-6),
    )


def rare_turns(threshold: float) -> Law:
    """u in a slab |z| ≤ b, v above it and -v below it: the samples that turn g are rare or unseen."""

    def sample(rng: np.random.Generator, shape: tuple[int, int], size: float) -> Array:
        z = rng.standard_normal(shape) + size
        across = np.where(np.abs(z) > threshold, np.sign(z), 0.0)
        return np.stack([1 - np.abs(across), across], axis=-1)

    def mean(size: float) -> Array:
        beyond, before = ndtr(size - threshold), ndtr(-threshold - size)
        return np.array([1 - beyond - before, beyond - before])

    p = float(2 * ndtr(-threshold))
    return Law(f"rare turns, p = {p:.3g}", sample, mean, p, p * (1 - p))


def signs(dimension: int, along: float) -> Law:
    """A fixed part and the signs of D - 1 coordinates of the noise, all of which the attack moves alike."""
    others = dimension - 1
    part = np.sqrt((1 - along**2) / others)

    def sample(rng: np.random.Generator, shape: tuple[int, int], size: float) -> Array:
        feature = np.full((*shape, dimension), along)
        z = rng.standard_normal((*shape, others), dtype=np.float32) + size / np.sqrt(others)
        feature[..., 1:] = part * np.sign(z)
        return feature

    def mean(size: float) -> Array:
        return np.array([along] + [part * (2 * ndtr(size / np.sqrt(others)) - 1)] * others)

    return Law(f"signs in dimension {dimension}, ρ = {along}", sample, mean, float(part**2), 0.0)


def worst_case(norm: float, size: float) -> Law:
    """The map that attains the tight bound at this size: the bound fails whenever the bound of ρ does."""
    z = np.linspace(-10, 10, 40_001)
    weight = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * (z[1] - z[0])

    def sample(rng: np.random.Generator, shape: tuple[int, int], shift: float) -> Array:
        return worst_case_feature(rng.standard_normal(shape) + shift, norm, size, 1.0)

    def mean(shift: float) -> Array:
        return np.asarray(weight @ worst_case_feature(z + shift, norm, size, 1.0))

    along, across = (weight @ worst_case_feature(z, norm, size, 1.0) ** 2).tolist()
    return Law(f"worst case of ρ = {norm}, c = {size}", sample, mean, across, along - norm**2, size)


def von_mises_fisher(rng: np.random.Generator, concentration: float, dimension: int, runs: int) -> Array:
    """Unit vectors ``(runs, dimension)`` around the first axis (Wood 1994); their mean has the norm A_d(κ)."""
    d = dimension - 1
    b = d / (np.sqrt(4 * concentration**2 + d**2) + 2 * concentration)
    x = (1 - b) / (1 + b)
    shift = concentration * x + d * np.log(1 - x**2)
    along = np.full(runs, np.nan)
    while np.isnan(along).any():
        open_ = np.flatnonzero(np.isnan(along))
        beta = rng.beta(d / 2, d / 2, len(open_))
        candidate = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
        accept = concentration * candidate + d * np.log(1 - x * candidate) - shift >= np.log(rng.random(len(open_)))
        along[open_[accept]] = candidate[accept]
    across = rng.standard_normal((runs, d))
    across *= (np.sqrt(1 - along**2) / np.linalg.norm(across, axis=1))[:, None]
    return np.concatenate([along[:, None], across], axis=1)


def vmf_norm(concentration: float, dimension: int) -> float:
    """A_d(κ), the norm of the mean of a von Mises-Fisher law."""
    return float(ive(dimension / 2, concentration) / ive(dimension / 2 - 1, concentration))


def cloud(dimension: int, concentration: float) -> Law:
    """A von Mises-Fisher cloud, which no attack moves."""
    norm = vmf_norm(concentration, dimension)

    def sample(rng: np.random.Generator, shape: tuple[int, int], size: float) -> Array:
        flat = von_mises_fisher(rng, concentration, dimension, shape[0] * shape[1])
        return flat.reshape(*shape, dimension)

    along = 1 - norm**2 - (dimension - 1) * norm / concentration
    return Law(
        f"von Mises-Fisher cloud in dimension {dimension}, ρ = {norm:.2f}",
        sample,
        lambda size: norm * np.eye(1, dimension)[0],
        norm / concentration,
        along,
    )
