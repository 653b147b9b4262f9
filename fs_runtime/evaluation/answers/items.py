"""The questions whose answers are voted on: held-out ones of the reference model, or the user's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fs_runtime.evaluation.robustness.items import KINDS
from fs_runtime.preprocessing.pictures import digest, read_picture
from fs_runtime.reference.digits import load_digit_scans
from fs_runtime.reference.evaluate import AskedItem, held_out_items
from fs_runtime.votes import Choices, ReadingError, normalised

_TOGETHER = 75  # questions of a kind whose answers are each one's choices
_FIELDS = {"image": str, "question": str, "answer": str, "choices": list}
_OWN = "own"


class ItemsError(ValueError):
    """The questions cannot be read; the message names the line and the remedy."""


@dataclass(frozen=True, slots=True)
class VotedItem:
    """One question about one picture.

    Attributes:
        kind: Kind of question.
        question: Its text.
        answer: The right answer.
        choices: Answers to choose from, the right one among them; None where there are none.
        digest: SHA-256 of all of these and of the picture.
        read: Gives the picture, ``(H, W, 3)`` uint8 RGB.
    """

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...] | None
    digest: str
    read: Callable[[], NDArray[np.uint8]]


def held_out(count: int, seed: int) -> list[VotedItem]:
    """Held-out questions about single pictures, alternating between the kinds, whatever the model answers.

    The choices of a question are the answers to it and to the 74 others of its kind that were drawn with it: there is
    no telling from them which one is right. Fewer questions are the first of more, up to 600.

    Args:
        count: How many.
        seed: Of pictures and wordings.

    Raises:
        ItemsError: There are too few held-out digits.
    """
    each = -(-count // len(KINDS))
    drawn = -(-each // _TOGETHER) * _TOGETHER
    scans = len(load_digit_scans()[1])
    if each > scans:
        raise ItemsError(f"there are {scans} held-out digits, too few for {count} questions of every kind: take fewer")
    by_kind: dict[str, list[AskedItem]] = {kind: [] for kind in KINDS}
    for asked in held_out_items(drawn, seed):
        if asked.kind in by_kind:
            by_kind[asked.kind].append(asked)
    rng = np.random.default_rng((seed, 0))
    by_kind["digit"] = [by_kind["digit"][int(i)] for i in rng.permutation(len(by_kind["digit"]))]
    found = [
        _held_out(by_kind[kind][number], by_kind[kind][number // _TOGETHER * _TOGETHER :][:_TOGETHER])
        for number in range(each)
        for kind in KINDS
    ]
    return found[:count]


def own_items(path: Path, limit: int | None = None) -> list[VotedItem]:
    """Reads questions from JSON lines.

    Each is an object with ``image`` (a path from the file's folder), ``question``, ``answer`` and, where answers are
    to be held to some, ``choices``. Empty lines are skipped.

    Args:
        path: The file.
        limit: At most so many, the first ones.

    Raises:
        ItemsError: The file cannot be read or has no question, or a line is not one.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ItemsError(f"{path} cannot be read as text in UTF-8: {error}") from None
    found: list[VotedItem] = []
    for number, line in enumerate(lines, start=1):
        if limit is not None and len(found) >= limit:
            break
        if line.strip():
            try:
                found.append(_own(path.parent, line))
            except (ItemsError, ReadingError) as error:
                raise ItemsError(f"{path}, line {number}: {error}") from None
    if not found:
        raise ItemsError(f"{path} has no question: give one on each line, as JSON")
    return found


def _held_out(asked: AskedItem, group: Iterable[AskedItem]) -> VotedItem:
    picture, text = asked.messages[0]["content"]
    pixels = np.asarray(picture["image"])
    answers = {normalised(one.answer): one.answer for one in group}
    return _item(asked.kind, text["text"], asked.answer, tuple(answers.values()), lambda: pixels)


def _own(folder: Path, line: str) -> VotedItem:
    try:
        values = json.loads(line)
    except ValueError as error:
        raise ItemsError(f"no JSON ({error})") from None
    if not isinstance(values, dict):
        raise ItemsError('give an object such as {"image": "a.png", "question": "What is it?", "answer": "a dog"}')
    if unknown := values.keys() - _FIELDS.keys():
        raise ItemsError(f"{sorted(unknown)[0]!r} is none of {', '.join(_FIELDS)}")
    for name, kind in _FIELDS.items():
        if name == "choices" and values.get(name) is None:
            continue
        value = values.get(name)
        if not isinstance(value, kind) or not value:
            raise ItemsError(f"{name!r} must be a {'list of texts' if kind is list else 'text'}, got {value!r}")
    choices = _choices(values)
    path = folder / values["image"]
    try:
        read_picture(path)
    except OSError as error:
        raise ItemsError(f"the image {path} cannot be read: {error}") from None
    return _item(_OWN, values["question"], values["answer"], choices, lambda: read_picture(path))


def _choices(values: dict[str, Any]) -> tuple[str, ...] | None:
    given = values.get("choices")
    if given is None:
        return None
    if not all(isinstance(choice, str) for choice in given):
        raise ItemsError("'choices' must be a list of texts")
    try:
        reading = Choices(given)
    except ReadingError as error:
        raise ItemsError(f"'choices' {error}") from None
    if reading(values["answer"], True) == (None,):
        raise ItemsError(f"the answer {values['answer']!r} is not among its choices; add it")
    return tuple(given)


def _item(
    kind: str, question: str, answer: str, choices: tuple[str, ...] | None, read: Callable[[], NDArray[np.uint8]]
) -> VotedItem:
    named = json.dumps([kind, question, answer, choices, digest(read())], ensure_ascii=False)
    return VotedItem(kind, question, answer, choices, f"sha256:{hashlib.sha256(named.encode()).hexdigest()}", read)
