"""The certificates of the literature that ours are compared with: closed forms by hand, and nothing breaks them."""

import numpy as np
import pytest
from scipy.stats import binom, norm

from fs_runtime.evaluation.certificates.literature import (
    CENTER_SMOOTHING_FACTOR,
    cdf_similarities,
    center_smoothing_angles,
    choose_centre,
    lipschitz_similarities,
)


def test_lipschitz_by_hand() -> None:
    found = lipschitz_similarities(0.9, np.array([0.0, 0.1, 1.0, 2.0]))
    assert found[0] == 1
    # For a small c the reach is nearly the published sqrt(2 / π) c, and never more.
    published = np.sqrt(1 - (2 / np.pi) * 0.01 / 0.81)
    assert published < found[1] < published + 1e-5
    assert found[2] == pytest.approx(np.sqrt(1 - (0.76585 / 0.9) ** 2), abs=1e-5)  # 2 (2 Φ(0.5) - 1) = 0.76585
    assert found[3] == 0  # 2 (2 Φ(1) - 1) = 1.37 is more than ρ
    assert np.all(lipschitz_similarities(0.0, np.array([0.5, 1.0])) == 0)


def test_lipschitz_holds_for_the_map_that_moves_fastest() -> None:
    # f = (cos φ, sin φ) with φ = β sign(z): g = (cos β, sin β (1 - 2 Φ(-c))) at distance c, and ρ = cos β at 0.
    ratios = np.linspace(0.05, 1.5, 20)
    for beta in (0.1, 0.4, 0.7):
        moved = np.stack([np.full(20, np.cos(beta)), np.sin(beta) * (1 - 2 * norm.cdf(-ratios))])
        cosine = moved[0] / np.hypot(*moved)
        assert np.all(lipschitz_similarities(np.cos(beta), ratios) <= cosine)


def test_cdf_of_samples_that_do_not_vary() -> None:
    alpha, m = 0.001, 200
    margin = np.sqrt(np.log(1 / alpha) / (2 * m))
    ratios = np.array([0.0, 0.5, 1.0])
    expected = -1 + 1.9 * norm.cdf(norm.ppf(1 - margin) - ratios)
    assert cdf_similarities(np.full(m, 0.9), ratios, alpha) == pytest.approx(expected)


def test_cdf_of_two_values_by_hand() -> None:
    # Of four samples one is 0.2 and three are 0.8; with α = exp(-8 / 100) the margin is 0.1.
    values = np.array([0.8, 0.2, 0.8, 0.8])
    expected = -1 + 1.2 * norm.cdf(norm.ppf(0.9) - 0.25) + 0.6 * norm.cdf(norm.ppf(0.65) - 0.25)
    assert cdf_similarities(values, np.array([0.25]), np.exp(-0.08))[0] == pytest.approx(expected)
    assert cdf_similarities(np.array([-0.5]), np.array([0.25]), 0.001)[0] == 0


def test_cdf_covers() -> None:
    # ⟨u, f⟩ = 1 where z > t, else v: the attack along z moves its mean to 1 - (1 - v) Φ(t + c), the worst there is.
    rng = np.random.default_rng(0)
    ratios = np.array([0.0, 0.5, 1.0])
    truth = 1 - 0.4 * norm.cdf(-0.8 + ratios)
    wrong = sum(
        np.any(cdf_similarities(np.where(rng.standard_normal(100) > -0.8, 1.0, 0.6), ratios, 0.05) > truth)
        for _ in range(2000)
    )
    assert wrong <= binom.ppf(0.9999, 2000, 0.05)


def test_center_is_the_mean_direction_or_the_best_sample() -> None:
    around = np.hstack([np.ones((4, 1)), 0.4 * np.eye(4)]) / np.sqrt(1.16)  # nearer to their mean than to each other
    assert choose_centre(around @ around.T, 4) @ around == pytest.approx(
        np.array([1, 0.1, 0.1, 0.1, 0.1]) / np.sqrt(1.04)
    )
    # Three together and two far away: half of the five lie at 0, the mean does not.
    angles = np.array([0.0, 0.0, 0.0, 1.5, 1.5, 0.7])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert choose_centre(points @ points.T, 5) @ points[:5] == pytest.approx([1, 0])


def test_center_smoothing_by_hand() -> None:
    # One sample makes the centre: more than half of one is in the ball with probability p₀ = 1 - α / 2 = 0.9.
    # At c = 0 the ball must have mass 0.9: as many of 50 distances as 50 draws reach with a probability of at most 0.1.
    distances = np.linspace(0.01, 0.5, 50)
    order = next(k for k in range(1, 51) if binom.sf(k - 1, 50, 0.9) <= 0.1)
    assert center_smoothing_angles(distances[::-1], np.array([0.0]), 1, 0.2)[0] == distances[order - 1]
    # 0.9 → Φ(Φ⁻¹(0.9) + 1) = 0.9887; 0.9887^50 = 0.566 > 0.1: too few samples
    assert np.isinf(center_smoothing_angles(distances, np.array([1.0]), 1, 0.2)[0])


def test_center_smoothing_holds_on_a_circle() -> None:
    """Brute force: both centres are computed again and again, for many attacks, and never part by more than said."""
    rng = np.random.default_rng(1)
    ratios = np.array([0.25, 0.5, 1.0])
    half, alpha = 100, 0.02

    def circle(z: np.ndarray) -> np.ndarray:
        angle = 0.25 * np.sign(z - 0.3) + 0.1 * np.sin(2 * z)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def center(points: np.ndarray) -> np.ndarray:
        return choose_centre(points @ points.T, half) @ points[:half]

    furthest, smallest = np.zeros(3), np.full(3, np.inf)
    wrong = 0
    for _ in range(200):
        points = circle(rng.standard_normal(2 * half))
        here = center(points)
        distances = np.arccos(np.clip(points[half:] @ here, -1, 1))
        bound = CENTER_SMOOTHING_FACTOR * center_smoothing_angles(distances, ratios, half, alpha)
        for index, ratio in enumerate(ratios):
            there = center(circle(rng.choice([-1, 1]) * ratio + rng.standard_normal(half)))
            angle = np.arccos(np.clip(here @ there, -1, 1))
            wrong += bool(angle > bound[index])
            furthest[index] = max(furthest[index], angle)
            smallest[index] = min(smallest[index], bound[index])
    assert wrong <= binom.ppf(0.9999, 600, alpha)
    assert np.all(np.isfinite(smallest))
    assert np.all(furthest > smallest / 5)  # the attacks do move the centre
