"""The settings that attacked images depend on, under which they are cached on disk."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

from fs_runtime.attacks import Attack, Norm
from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.robustness.defences import Defence
from fs_runtime.evaluation.robustness.items import EvaluationItem


def attack_settings(
    source: Defence,
    attack: Attack,
    norm: Norm,
    size: float,
    items: Sequence[EvaluationItem],
    answerer: Answerer,
    *,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """All settings that the attacked images depend on, as JSON values; n and further items are not among them.

    Args:
        source: The row that is attacked.
        attack: With its steps and restarts.
        norm: Of the ball.
        size: ε in 255ths.
        items: The items that are attacked together.
        answerer: The language model; used for attacks on answers only.
        draws: Noisy copies per gradient; used with noise only.
        seed: Of the plan.
    """
    smoother = source.smoother
    parameters = dataclasses.asdict(attack)
    del parameters["score"]  # a function, which follows from the name
    return {
        "attack": parameters,
        "norm": norm,
        "size": size,
        "sigma": source.sigma,
        "encoder": smoother.encoder.fingerprint,
        "purifier": smoother.purifier.fingerprint if smoother.purifier else None,
        "mapper": smoother.mapper.fingerprint if smoother.mapper else None,
        "language_model": answerer.fingerprint if attack.reads == "answer" else None,
        "draws": draws if source.sigma > 0 else 1,
        "seed": seed,
        "items": _digest(items),
    }


def _digest(items: Sequence[EvaluationItem]) -> str:
    digest = hashlib.sha256()
    for item in items:
        shapes = [tuple(image.pixels.shape) for image in (item.image, item.target)]
        digest.update(repr((item.question, item.answer, item.target_answer, shapes)).encode())
        for image in (item.image, item.target):
            digest.update(image.pixels.contiguous().cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
