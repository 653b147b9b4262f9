"""Checks for gradient masking: a stronger attack must not be less successful.

Sources: Athalye, Carlini and Wagner, "Obfuscated Gradients Give a False Sense of Security", ICML 2018
(arXiv 1802.00420), section 3.1; Carlini et al., "On Evaluating Adversarial Robustness", arXiv 1902.06705, section 5.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fs_runtime.attacks.answer_loss import AnswerModel
from fs_runtime.attacks.methods import Attack, answer_score, mean_scores, run_attack
from fs_runtime.attacks.pipeline import FeaturePipeline
from fs_runtime.attacks.threat_model import ThreatModel

_EVALUATION_DRAWS = 64
_Z = 1.645  # a one-sided test at 5%
_TOLERANCE = 1e-3  # of the score; smaller differences are irrelevant, even if they are significant


@dataclass(frozen=True, slots=True)
class MaskingCheck:
    """One comparison of a weaker attack with a stronger one.

    Attributes:
        name: What makes the second attack stronger.
        weaker: Mean score of the weaker attack; the score is the quantity that the attack raises.
        stronger: The same for the stronger attack.
        standard_error: Of the mean difference, over images.
        passed: Whether the stronger attack is not significantly worse.
    """

    name: str
    weaker: float
    stronger: float
    standard_error: float
    passed: bool


@dataclass(frozen=True, slots=True)
class MaskingReport:
    """The checks of one attack on one model."""

    attack: str
    images: int
    checks: tuple[MaskingCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether no check suggests gradient masking."""
        return all(check.passed for check in self.checks)

    def markdown(self) -> str:
        """The checks as a Markdown table."""
        lines = [
            f"{self.attack} on {self.images} images; the score is what the attack raises.",
            "",
            "| check | weaker attack | stronger attack | standard error | passed |",
            "|---|---:|---:|---:|---|",
        ]
        lines += [
            f"| {check.name} | {check.weaker:.4f} | {check.stronger:.4f} | {check.standard_error:.4f} "
            f"| {'yes' if check.passed else 'NO'} |"
            for check in self.checks
        ]
        return "\n".join(lines)


def check_gradient_masking(
    attack: Attack,
    pipeline: FeaturePipeline,
    undefended: FeaturePipeline,
    images: Tensor,
    threat: ThreatModel,
    *,
    targets: Tensor | None = None,
    answers: AnswerModel | None = None,
    seed: int = 0,
) -> MaskingReport:
    """Compares the white-box attack with weaker versions of itself and with a transfer attack.

    Four checks: a quarter of the steps against all; one draw per step against the pipeline's; ε against 2 ε; transfer
    from the undefended model against white-box. Every result is scored on the defended model with the same fresh draws.

    Args:
        attack: The attack.
        pipeline: The defended model, with the draws of a strong attack.
        undefended: The same model without defence.
        images: ``(B, C, H, W)`` in [0, 1], at least two.
        threat: Ball and box.
        targets: ``(B, C, H, W)`` for a targeted attack on features.
        answers: For an attack on answers.
        seed: Of every part; all attacks start from the same points.

    Raises:
        ValueError: There are fewer than two images, too few for a standard error, or targets or answers are missing.
    """
    if len(images) < 2:
        raise ValueError("checking for masked gradients needs at least two images")
    judge = pipeline.with_options(draws=_EVALUATION_DRAWS, seed=seed + 1_000_003, fixed=True)
    if attack.reads == "answer":
        score, judge = answer_score(attack, answers), judge.embedded()
        reference = torch.arange(len(images), device=images.device)
    else:
        score = attack.score
        reference = judge.features(images if targets is None or not attack.targeted else targets)

    def scores(attack: Attack = attack, pipeline: FeaturePipeline = pipeline, threat: ThreatModel = threat) -> Tensor:
        found = run_attack(
            attack, [pipeline.with_options()], images, threat, targets=targets, answers=answers, seed=seed
        )
        return mean_scores(score, [judge], [reference], found)

    full = scores()
    fewer_steps = scores(attack=dataclasses.replace(attack, steps=max(1, attack.steps // 4)))
    larger = scores(threat=ThreatModel(threat.norm, 2 * threat.epsilon))
    checks = [_compare("four times the steps", fewer_steps, full)]
    if pipeline.draws > 1:
        one_draw = scores(pipeline=pipeline.with_options(draws=1))
        checks.append(_compare(f"{pipeline.draws} draws a step instead of 1", one_draw, full))
    checks.append(_compare("twice the ε", full, larger))
    checks.append(_compare("white-box instead of transferred", scores(pipeline=undefended), full))
    return MaskingReport(attack.name, len(images), tuple(checks))


def _compare(name: str, weaker: Tensor, stronger: Tensor) -> MaskingCheck:
    gain = stronger - weaker  # (B,)
    error = float(gain.std()) / math.sqrt(len(gain))
    passed = float(gain.mean()) >= -(_Z * error + _TOLERANCE)
    return MaskingCheck(name, float(weaker.mean()), float(stronger.mean()), error, passed)
