"""The questions of the evaluation: about held-out pictures, and answered correctly by the undefended model.

Each has a target for targeted attacks: another picture for which the model gives another answer. A question with the
same answer for nearly every picture ("Is there a purple heart?") may have no target, and is then left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fs_runtime.encoders import PreparedImage
from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.robustness.defences import Defence, serve_images
from fs_runtime.reference.digits import load_digit_scans
from fs_runtime.reference.evaluate import held_out_items
from fs_runtime.reference.questions import SCENE_KINDS

KINDS = (*SCENE_KINDS, "digit")
_SPARE = 1.4  # candidates per wanted item; some are answered wrongly, or get the same answer for every picture
_TARGET_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class EvaluationItem:
    """One question.

    Attributes:
        kind: Kind of question, one of ``KINDS``.
        question: Its text.
        answer: The right answer, which the undefended model gives.
        image: The picture.
        target: Another picture, the goal of targeted attacks.
        target_answer: The undefended model's answer for that picture; differs from ``answer``.
    """

    kind: str
    question: str
    answer: str
    image: PreparedImage
    target: PreparedImage
    target_answer: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    kind: str
    question: str
    answer: str
    image: PreparedImage


def evaluation_items(
    count: int, undefended: Defence, answerer: Answerer, seed: int, kinds: Sequence[str] = KINDS
) -> list[EvaluationItem]:
    """Makes ``count`` items, alternating between the kinds of question.

    Args:
        count: Number of items.
        undefended: The model without defence.
        answerer: Its language model.
        seed: Of pictures, wordings and targets.
        kinds: Of ``KINDS``.

    Raises:
        ValueError: Too few questions are answered correctly and have a target, or there are too few held-out digits.
    """
    candidates = _candidates(round(_SPARE * count) + 2 * len(KINDS), undefended, seed, kinds)
    given = _answers(undefended, answerer, [c.question for c in candidates], [c.image for c in candidates])
    right = [c for c, answer in zip(candidates, given, strict=True) if answer == c.answer]
    rng = np.random.default_rng((seed, 1))
    found: dict[int, EvaluationItem] = {}
    for _ in range(_TARGET_ROUNDS):
        left = [i for i in range(len(right)) if i not in found]
        targets = [candidates[int(rng.integers(len(candidates)))].image for _ in left]
        answers = _answers(undefended, answerer, [right[i].question for i in left], targets) if left else []
        for i, target, answer in zip(left, targets, answers, strict=True):
            one = right[i]
            if answer != one.answer:
                found[i] = EvaluationItem(one.kind, one.question, one.answer, one.image, target, answer)
    if len(found) < count:
        raise ValueError(
            f"only {len(found)} of {len(candidates)} questions are answered correctly by the undefended model and have "
            f"another answer for another picture, too few for {count} images: take fewer, or a better model"
        )
    return [found[i] for i in sorted(found)[:count]]


def with_pixels(image: PreparedImage, pixels: Any) -> PreparedImage:
    """The same image with other ``(C, H, W)`` pixels."""
    return dataclasses.replace(image, pixels=pixels)


def _candidates(count: int, undefended: Defence, seed: int, kinds: Sequence[str]) -> list[_Candidate]:
    """Questions, alternating between the kinds."""
    each = -(-count // len(kinds))
    digits = len(load_digit_scans()[1])
    if "digit" in kinds and each > digits:
        raise ValueError(f"there are only {digits} held-out digits: take fewer images")
    by_kind: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for item in held_out_items(max(each, 8), seed):
        if item.kind in by_kind:
            by_kind[item.kind].append(item)
    rng = np.random.default_rng((seed, 0))
    order = rng.permutation(len(by_kind["digit"]))
    by_kind["digit"] = [by_kind["digit"][i] for i in order]
    candidates = []
    for i in range(each):
        for kind in kinds:
            item = by_kind[kind][i]
            picture, text = item.messages[0]["content"]
            prepared = undefended.smoother.encoder.prepare(np.asarray(picture["image"]))
            candidates.append(_Candidate(kind, text["text"], item.answer, prepared))
    return candidates


def _answers(
    undefended: Defence, answerer: Answerer, questions: Sequence[str], images: Sequence[PreparedImage]
) -> list[str]:
    return answerer.answer(questions, serve_images(undefended, images, 1, seed=0).embeddings)
