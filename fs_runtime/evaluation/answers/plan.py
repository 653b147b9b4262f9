"""What is measured of answers by vote."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

CERTIFIED_RATIOS = (0.5, 1.0, 1.5)
"""r / σ at which tables state the certified accuracy."""

ADAPTIVE_RATIO = 0.5
"""r / σ of the radius that adaptive sampling ends at."""

COSINE = 0.5
"""Cosine similarity whose certified radius stands beside that of the votes."""


@dataclass(frozen=True, slots=True)
class VotePlan:
    """Settings of a measurement.

    Attributes:
        sigmas: Noise levels, in pixels of [0, 1].
        samples: Every n, rising, the pilot included. Fewer copies are the first of more.
        confidence: 1 - α of each certificate by itself.
        max_new_tokens: Most tokens of an answer; one that is cut off has no vote.
        seed: Of questions, noise and attacks.
        attacked: Certified items to attack, at most: the first ones.
        attack_sigma: Their noise level, one of ``sigmas``.
        attack_sizes: Of the balls, as multiples of the certified radius, rising.
        steps: Gradient steps of each start.
        restarts: Random starts for each loss and size.
        draws: Fresh noisy copies behind each gradient.
        judging: Fresh copies of an attacked picture, at most, that say whether the vote is turned.
    """

    sigmas: tuple[float, ...]
    samples: tuple[int, ...]
    confidence: float = 0.999
    max_new_tokens: int = 64
    seed: int = 0
    attacked: int = 0
    attack_sigma: float = 0.25
    attack_sizes: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0)
    steps: int = 20
    restarts: int = 2
    draws: int = 8
    judging: int = 1000

    def vote_settings(self) -> dict[str, Any]:
        """What all votes share; noise levels may be added later."""
        return {name: getattr(self, name) for name in ("samples", "confidence", "max_new_tokens", "seed")}

    def attack_settings(self) -> dict[str, Any]:
        """What all attacks share; items, noise levels and sizes may be added later."""
        added = ("sigmas", "attacked", "attack_sigma", "attack_sizes")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in added}
