"""How far a training run is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """State after a step.

    Attributes:
        stage: What is trained.
        step: Steps of this stage that are done.
        steps: Steps that it takes.
        loss: Of this step.
        score: The newest on held-out pictures, nan before the first: the Gaussian robustness score of a PSM, the PSNR
            in dB at σ = 0.25 of a purifier that is for no encoder in particular.
    """

    stage: str
    step: int
    steps: int
    loss: float
    score: float
