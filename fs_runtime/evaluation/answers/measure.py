"""Votes on every item at every noise level, and attacks on those that are certified."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from fs_runtime.certificate.vote_bound import PILOT
from fs_runtime.embedded import EmbeddedModel
from fs_runtime.evaluation.answers.ask import CopyAsker
from fs_runtime.evaluation.answers.attack import CHOOSING, VoteAttacker
from fs_runtime.evaluation.answers.items import VotedItem
from fs_runtime.evaluation.answers.outcomes import count_votes, reading_of
from fs_runtime.evaluation.answers.plan import VotePlan
from fs_runtime.evaluation.answers.records import ItemVotes, VoteAttackFile, VoteAttackKey, VoteFile, VoteKey
from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.seeds import seed_of
from fs_runtime.smoothing.noise import NOISE_VERSION
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.votes import Ballot

_GRADIENT = 3  # passes that a gradient takes, about: one forward, two backward
_TIMED_COPIES = 32

Advance = Callable[[float, str], None]


def settings_of(smoother: Smoother, language: EmbeddedModel, items: Sequence[VotedItem]) -> dict[str, Any]:
    """What votes and attacks depend on beside the plan, as JSON values; a later run may have more items."""
    return {
        "encoder": smoother.encoder.fingerprint,
        "purifier": smoother.purifier.fingerprint if smoother.purifier else None,
        "mapper": smoother.mapper.fingerprint if smoother.mapper else None,
        "language_model": language.fingerprint,
        "noise": NOISE_VERSION,
        "items": {str(number): item.digest for number, item in enumerate(items)},
    }


class VoteRun:
    """A running measurement.

    Args:
        plan: What to measure.
        items: The questions.
        asker: The model.
        votes: Keeps finished votes.
        turns: Keeps finished attacks; None for none.
        scorer: The language model with gradients, for attacks.
    """

    def __init__(
        self,
        plan: VotePlan,
        items: Sequence[VotedItem],
        asker: CopyAsker,
        votes: VoteFile,
        turns: VoteAttackFile | None = None,
        scorer: Answerer | None = None,
    ) -> None:
        self.plan, self.items, self.votes, self.turns = plan, items, votes, turns
        self._asker = asker
        self._attacker = None if scorer is None else VoteAttacker(asker, scorer, plan)
        every = [VoteKey(number, sigma) for sigma in plan.sigmas for number in range(len(items))]
        self.missing = [key for key in every if key not in votes.results]
        self._copy_seconds, self._pass_seconds = self._timed() if self.missing or self._attacker else (0.0, 0.0)

    @property
    def seconds(self) -> float:
        """Estimate of the time that votes take, and of the most that attacks take, from timed copies of one item."""
        votes = len(self.missing) * self.plan.samples[-1] * self._copy_seconds
        left = self._sizes_left() if self._attacker else 0
        return votes + left * self._seconds_of_attack

    def measure(self, advance: Advance = lambda _seconds, _text: None) -> None:
        """Measures what is missing, and stores each result when it is finished.

        Args:
            advance: Called with the part of ``seconds`` that is done, and what is being measured.

        Raises:
            TrainingError: The disk is full or cannot be written.
        """
        while self.missing:
            key = self.missing[0]
            record = self._asker.votes_on(
                key,
                self.items[key.item],
                self.plan,
                seed_of(self.plan.seed, "noise", key.item),
                partial(self._count, advance, f"σ = {key.sigma:g}, question {key.item + 1}", 0),
            )
            self.votes.add(record)
            del self.missing[0]
        if self._attacker is not None and self.turns is not None:
            for record, ballot in self._certified():
                self._attack(record, ballot, self._attacker, self.turns, advance)

    def _certified(self) -> Iterator[tuple[ItemVotes, Ballot]]:
        """The first items whose whole answers are certified by all copies, as many as are to be attacked."""
        plan, found = self.plan, 0
        for number, item in enumerate(self.items):
            record = self.votes.results.get(VoteKey(number, plan.attack_sigma))
            if record is None or found == plan.attacked:
                continue
            reading = reading_of("text", item)
            ballot = count_votes(record.votes["text"], reading, plan.attack_sigma, plan.samples[-1], plan.confidence)
            if ballot.radius > 0:
                found += 1
                yield record, ballot

    def _attack(
        self, record: ItemVotes, ballot: Ballot, attacker: VoteAttacker, turns: VoteAttackFile, advance: Advance
    ) -> None:
        """Attacks one item with growing balls until one turns it."""
        key, item = record.key, self.items[record.key.item]
        image = self._asker.smoother.encoder.prepare(item.read())
        (winner,) = ballot.winners
        assert winner is not None  # noqa: S101 (it is certified)
        answer = _wording(record, ballot)
        for ratio in self.plan.attack_sizes:
            turn = turns.results.get(VoteAttackKey(key.item, key.sigma, ratio))
            if turn is None:
                turn = attacker.attack(
                    VoteAttackKey(key.item, key.sigma, ratio),
                    image,
                    item.question,
                    answer,
                    winner,
                    ballot.reading,
                    ballot.radius,
                    partial(self._count, advance, f"attack on question {key.item + 1} at {ratio:g} R"),
                )
                turns.add(turn)
            if turn.turned:
                return

    def _sizes_left(self) -> int:
        """Attacks that are left to make, at most: growing ones until one turns the item."""
        sizes = self.plan.attack_sizes
        turns = [] if self.turns is None else list(self.turns.results.values())
        own = [turn.key for turn in turns if turn.key.sigma == self.plan.attack_sigma]
        done = sum(key.ratio in sizes for key in own)
        turned = [turn.key.ratio for turn in turns if turn.turned and turn.key in own]
        spared = sum(size > ratio for ratio in turned for size in sizes)
        return max(0, len(sizes) * min(self.plan.attacked, len(self.items)) - done - spared)

    @property
    def _seconds_of_attack(self) -> float:
        plan = self.plan
        gradients = 2 * plan.restarts * (plan.steps + 1) * plan.draws
        return self._seconds_of(gradients, 2 * CHOOSING + plan.judging)

    def _seconds_of(self, gradients: int, copies: int) -> float:
        return _GRADIENT * gradients * self._pass_seconds + copies * self._copy_seconds

    def _count(self, advance: Advance, text: str, gradients: int, copies: int) -> None:
        advance(self._seconds_of(gradients, copies), text)

    def _timed(self) -> tuple[float, float]:
        """Seconds of one copy with its answers, and of its pass through the networks alone, after one uncounted."""
        key = self.missing[0] if self.missing else VoteKey(0, self.plan.sigmas[0])
        for copies in (PILOT, _TIMED_COPIES):
            plan = VotePlan((key.sigma,), (copies,), self.plan.confidence, self.plan.max_new_tokens)
            began = time.perf_counter()
            record = self._asker.votes_on(key, self.items[key.item], plan, seed=0)
            seconds = time.perf_counter() - began
        return seconds / _TIMED_COPIES, record.smoothing / _TIMED_COPIES


def _wording(record: ItemVotes, ballot: Ballot) -> str:
    """The most frequent of the model's own wordings of the winner."""
    votes = record.votes["text"]
    counts = [0] * len(votes.texts)
    for number in votes.copies:
        counts[number] += ballot.reading(votes.texts[number], votes.finished[number]) == ballot.winners
    return votes.texts[counts.index(max(counts))]
