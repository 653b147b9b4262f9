"""Inputs of an attack: pictures, targets, the ball around each picture, and the answers whose loss it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from fs_runtime.attacks import Attack, Norm, ThreatModel
from fs_runtime.attacks.answer_loss import AnswerModel
from fs_runtime.encoders import VisionEncoder
from fs_runtime.encoders.base import Grid
from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.robustness.items import EvaluationItem


@dataclass(frozen=True, slots=True)
class AttackInputs:
    """Inputs of an attack on some items.

    Attributes:
        images: ``(B, C, H, W)`` in [0, 1], on the encoder's device.
        targets: ``(B, C, H, W)`` pictures that targeted attacks on features move towards.
        answers: The answers whose loss attacks on answers change: the right ones, or those of the targets.
        threat: Ball and box.
        grid: Of the tokens.
    """

    images: Tensor
    targets: Tensor
    answers: AnswerModel
    threat: ThreatModel
    grid: Grid

    @classmethod
    def of(
        cls,
        items: Sequence[EvaluationItem],
        attack: Attack,
        norm: Norm,
        size: float,
        encoder: VisionEncoder,
        answerer: Answerer,
    ) -> Self:
        """Builds the inputs of an attack on items of one shape.

        Args:
            items: The items to attack.
            attack: Determines the answers by whether it is targeted.
            norm: Of the ball.
            size: ε of the ℓ∞ ball in 255ths; an ℓ2 ball has a matching size (:meth:`ThreatModel.of_size`).
            encoder: Of the model.
            answerer: Its language model.
        """
        images, targets = (
            torch.stack([image.pixels for image in images]).to(encoder.device)
            for images in ([item.image for item in items], [item.target for item in items])
        )
        grid = items[0].image.grid
        tokens = sum(rows * columns for rows, columns in encoder.token_grids(grid, "projector"))
        answers = [item.target_answer if attack.targeted else item.answer for item in items]
        scorer = answerer.scorer([item.question for item in items], answers, tokens)
        return cls(images, targets, scorer, ThreatModel.of_size(norm, size / 255, images.shape[1:]), grid)
