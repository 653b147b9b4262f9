"""What is kept of each item: its votes copy by copy, and what attacks on it reached."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fs_runtime.evaluation.result_file import ResultFile

READINGS = ("text", "choices")
"""Whole answers as the model words them, and answers that are held to the item's choices."""


@dataclass(frozen=True, slots=True)
class VoteKey:
    """Identifies the votes on one item.

    Attributes:
        item: Its number.
        sigma: σ of the noise, in pixels of [0, 1].
    """

    item: int
    sigma: float


@dataclass(frozen=True, slots=True)
class CopyAnswers:
    """The answers to all copies of an item.

    Attributes:
        texts: Distinct answers as the model gave them.
        finished: Whether the model ended each of them, rather than the limit of its length.
        copies: For each copy in the order of its draw, the number of its answer.
    """

    texts: list[str]
    finished: list[bool]
    copies: list[int]


@dataclass(frozen=True, slots=True)
class ItemVotes:
    """The votes on one item.

    Attributes:
        key: Identifies it.
        clean: By reading, the answer to the picture without noise, purifier and mapper.
        votes: By reading, the answers to its copies.
        smoothed: By reading, for each n, the answer to the mean features of the first n copies.
        norm_lower: For each n, the lower confidence bound of ρ from the first n copies.
        smoothing: Seconds of the smoothing pass over all copies.
        answering: Seconds of the free answers to all copies.
    """

    key: VoteKey
    clean: dict[str, str]
    votes: dict[str, CopyAnswers]
    smoothed: dict[str, list[str]]
    norm_lower: list[float]
    smoothing: float
    answering: float


@dataclass(frozen=True, slots=True)
class VoteAttackKey:
    """Identifies an attack.

    Attributes:
        item: Number of the item.
        sigma: σ.
        ratio: Size of the ball as a multiple of the certified radius.
    """

    item: int
    sigma: float
    ratio: float


@dataclass(frozen=True, slots=True)
class VoteAttack:
    """What an attack on the vote reached, on fresh copies.

    Attributes:
        key: Identifies it.
        radius: The certified radius, in pixels of [0, 1].
        distance: ℓ2 size of the change, in the same unit.
        loss: Name of the attack that did most.
        copies: Fresh copies that were asked about.
        for_winner: Those of them that vote for the winner.
        turned: Whether the winner's share is below one half, by its upper bound.
    """

    key: VoteAttackKey
    radius: float
    distance: float
    loss: str
    copies: int
    for_winner: int
    turned: bool


class VoteFile(ResultFile[ItemVotes]):
    """The votes that are finished.

    Args:
        path: The file; created with its folder if it is missing.
        settings: Settings that all share, as JSON values. Of ``items``, digests by number, a later run may have more.

    Raises:
        ValueError: The file holds results of other settings, or a line that is none.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        super().__init__(path, settings, _item_votes, row_specific=("items",))


class VoteAttackFile(ResultFile[VoteAttack]):
    """The attacks that are finished.

    Args:
        path: The file; created with its folder if it is missing.
        settings: As of :class:`VoteFile`.

    Raises:
        ValueError: As of :class:`VoteFile`.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        super().__init__(path, settings, _turn, row_specific=("items",))


def _item_votes(line: dict[str, Any]) -> ItemVotes:
    votes = {name: CopyAnswers(**found) for name, found in line["votes"].items()}
    return ItemVotes(**(line | {"key": VoteKey(**line["key"]), "votes": votes}))


def _turn(line: dict[str, Any]) -> VoteAttack:
    return VoteAttack(**(line | {"key": VoteAttackKey(**line["key"])}))
