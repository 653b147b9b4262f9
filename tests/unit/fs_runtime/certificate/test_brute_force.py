"""Brute force: no attack on the smoothed feature of a small network gets below the bound."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc

from fs_runtime.certificate import fcsb, score_from_norm, tight_similarity

Array = NDArray[np.float64]

INPUTS, HIDDEN, OUTPUTS = 6, 24, 5
SIGMA = 0.5
# Error of the mean over the quasi-random noise, in ρ and in the similarity; see the test of the noise below.
TOLERANCE = 1e-3


def noise(seed: int) -> Array:
    points = qmc.Sobol(INPUTS, seed=seed).random_base2(12)
    return np.asarray(SIGMA * ndtri(points))


class Network:
    """f: R^6 → S^4, tanh layers with random weights; ``gain`` sets how fast it turns."""

    def __init__(self, seed: int, gain: float) -> None:
        rng = np.random.default_rng(seed)
        self.first = gain * rng.standard_normal((INPUTS, HIDDEN)) / np.sqrt(INPUTS)
        self.bias = rng.standard_normal(HIDDEN)
        self.second = rng.standard_normal((HIDDEN, OUTPUTS)) / np.sqrt(HIDDEN)

    def smoothed(self, x: Array, draws: Array) -> tuple[Array, Callable[[Array], Array]]:
        """g(x), and the function that pulls a cotangent of g back to x."""
        hidden = np.tanh((x + draws) @ self.first + self.bias)
        raw = hidden @ self.second
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        f = raw / length

        def pull_back(v: Array) -> Array:
            tangent = (v - (f @ v)[:, None] * f) / length
            return np.asarray(np.mean((tangent @ self.second.T) * (1 - hidden**2), axis=0) @ self.first.T)

        return f.mean(axis=0), pull_back


def cosine(a: Array, b: Array) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def attack(
    network: Network,
    x: Array,
    radius: float,
    draws: Array,
    rng: np.random.Generator,
    restarts: int = 2,
    steps: int = 30,
) -> float:
    """The lowest cosine that projected gradient descent finds in the ball, over restarts on its surface."""
    here, _ = network.smoothed(x, draws)
    lowest = 1.0
    for _ in range(restarts):
        shift = rng.standard_normal(INPUTS)
        for step in range(steps):
            shift *= radius / np.linalg.norm(shift)
            there, pull_back = network.smoothed(x + shift, draws)
            value = cosine(here, there)
            lowest = min(lowest, value)
            length = np.linalg.norm(there)
            gradient = pull_back(here / np.linalg.norm(here) / length - value * there / length**2)
            size = radius * 0.5 * 0.92**step
            shift = shift - size * gradient / (float(np.linalg.norm(gradient)) + 1e-12)
    return lowest


def test_no_attack_beats_the_bound() -> None:
    draws = noise(0)
    rng = np.random.default_rng(1)
    share = []
    for seed in range(9):
        network = Network(seed, gain=rng.uniform(0.3, 2.0))
        x = rng.standard_normal(INPUTS)
        here, _ = network.smoothed(x, draws)
        norm = float(np.linalg.norm(here))
        for ratio in (0.25, 0.5, 1.0):
            found = attack(network, x, ratio * SIGMA, draws, rng)
            bound = tight_similarity(norm - TOLERANCE, ratio * SIGMA, SIGMA)
            assert found >= bound - TOLERANCE
            assert found >= fcsb(score_from_norm(norm - TOLERANCE), ratio * SIGMA, SIGMA) - TOLERANCE
            share.append(np.arccos(found) / np.arccos(bound))
    # The attack is a real one: it turns the feature by a good part of what the bound allows.
    assert max(share) > 0.7
    assert np.median(share) > 0.5


def test_the_gradient_of_the_attack() -> None:
    network, draws, x = Network(0, 1.0), noise(0), np.zeros(INPUTS)
    v = np.arange(OUTPUTS, dtype=np.float64) - 1.5
    _, pull_back = network.smoothed(x, draws)
    step = 1e-5
    differences = [
        (network.smoothed(x + step * e, draws)[0] - network.smoothed(x - step * e, draws)[0]) @ v / (2 * step)
        for e in np.eye(INPUTS)
    ]
    assert pull_back(v) == pytest.approx(differences, abs=1e-7)


def test_the_noise_is_accurate_enough() -> None:
    for seed in range(4):
        network = Network(seed, 2.0)
        one, two = (network.smoothed(np.ones(INPUTS), noise(s))[0] for s in (0, 1))
        assert np.linalg.norm(one - two) < TOLERANCE
