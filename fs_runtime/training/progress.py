"""Progress of a training run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a training run after a step.

    Attributes:
        stage: Name of the stage.
        step: Completed steps of this stage.
        steps: All steps of this stage.
        loss: Of this step.
        score: Latest score on held-out pictures, nan before the first: the Gaussian robustness score of a PSM, the
            mean cosine under attack of a robust encoder, the PSNR in dB at σ = 0.25 of a purifier for any encoder.
    """

    stage: str
    step: int
    steps: int
    loss: float
    score: float
