"""How long a measurement takes: the passes of each cell, by the measured time of one copy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from fs_runtime.encoders import PreparedImage
from fs_runtime.evaluation.photographs.cells import NO_PURIFIER, PhotographKey
from fs_runtime.evaluation.photographs.plan import PhotographPlan
from fs_runtime.smoothing.smoother import Smoother

GRADIENT = 3  # passes that a gradient takes, about: one forward, two backward
_TIMED_COPIES = 4


@dataclass(frozen=True, slots=True)
class CopyCosts:
    """Seconds of one noisy copy by the names of encoder and purifier.

    Attributes:
        seconds: Measured, on this machine and with whatever else it does.
    """

    seconds: Mapping[tuple[str, str], float]

    def of_copies(self, key: PhotographKey, copies: int) -> float:
        """Seconds to serve copies of a cell's row."""
        return copies * self.seconds[key.encoder, key.purifier]

    def of_gradients(self, key: PhotographKey, copies: int) -> float:
        """Seconds of gradients through copies of the row that a cell's attack is made on."""
        purifier = key.purifier if key.attack == "adaptive" else NO_PURIFIER
        return GRADIENT * copies * self.seconds[key.encoder, purifier]

    def of_cell(self, key: PhotographKey, plan: PhotographPlan, pictures: int) -> float:
        """Seconds of a whole cell; a fixed attack counts for the encoder without smoothing, where it is made."""
        count = min(pictures, plan.attack_images) if key.attack != "none" else pictures
        seconds = self.of_copies(key, count * (plan.samples if key.sigma > 0 else 1))
        if key.attack == "adaptive" or (key.attack == "fixed" and key.sigma == 0):
            draws = plan.draws if key.attack == "adaptive" else 1
            seconds += self.of_gradients(key, count * draws * (plan.steps + 1))
        return seconds


def seconds_of_copy(smoother: Smoother, image: PreparedImage, sigma: float) -> float:
    """Seconds of one noisy copy, after one that is not counted."""
    state = smoother.start(image, sigma, 0)
    smoother.draw_plain(state, 1)
    began = time.perf_counter()
    float(smoother.draw_plain(state, _TIMED_COPIES).sum())  # waits for the device
    return (time.perf_counter() - began) / _TIMED_COPIES
