"""An attack that knows everything: on the vote's loss, through purifier, noise, encoder, mapper and language model."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterable
from itertools import islice

import numpy as np
import torch

from fs_runtime.attacks import FeaturePipeline, ThreatModel, run_attack
from fs_runtime.attacks.methods import vote_attacks
from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.encoders import PreparedImage
from fs_runtime.evaluation.answers.ask import CopyAsker
from fs_runtime.evaluation.answers.plan import VotePlan
from fs_runtime.evaluation.answers.records import VoteAttack, VoteAttackKey
from fs_runtime.evaluation.intervals import share_at_most
from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.seeds import seed_of
from fs_runtime.votes import Reading, Value

_BOUND = 0.999  # confidence of the upper bound of the winner's share
_HELD = 0.9999  # that it is above one half, where judging ends early: a turned vote passes for held this rarely
CHOOSING = 32
"""Fresh copies that choose between the attacks."""

_FIRST_LOOK = 8
_INSIDE = 1 - 1e-6  # more than float32 rounds: a change of the certified size stays below it


class VoteAttacker:
    """Attacks votes on whole answers.

    Args:
        asker: The model.
        scorer: Its language model, with gradients.
        plan: Steps, starts and copies.
        batch_size: Most copies in one pass with gradients.
    """

    def __init__(self, asker: CopyAsker, scorer: Answerer, plan: VotePlan, batch_size: int = 32) -> None:
        self._asker, self._scorer, self._plan = asker, scorer, plan
        self._batch_size = batch_size

    def attack(
        self,
        key: VoteAttackKey,
        image: PreparedImage,
        question: str,
        answer: str,
        winner: Value,
        reading: Reading,
        radius: float,
        advance: Callable[[int, int], None] = lambda _gradients, _copies: None,
    ) -> VoteAttack:
        """Attacks one vote within ``key.ratio`` times its certified radius.

        Args:
            key: Names the item, σ and the size.
            image: The picture.
            question: That is asked.
            answer: The winning answer as the model words it.
            winner: What is read from it.
            reading: What is voted on.
            radius: The certified one, in pixels of [0, 1].
            advance: Called with copies behind gradients and copies asked about, as they are done.
        """
        plan = self._plan
        seed = seed_of(plan.seed, "attack", key.item, key.sigma, key.ratio)
        device = self._asker.smoother.encoder.device
        ball = ThreatModel("l2", key.ratio * radius * _INSIDE)
        tokens = sum(
            rows * columns for rows, columns in self._asker.smoother.encoder.token_grids(image.grid, "projector")
        )
        scorer = self._scorer.scorer([question], [answer], tokens)

        def votes(pixels: torch.Tensor, purpose: str) -> Iterable[bool]:
            attacked = dataclasses.replace(image, pixels=pixels)
            draws = seed_of(plan.seed, purpose, key.item, key.sigma, key.ratio)
            for text, finished in self._asker.fresh_answers(attacked, question, key.sigma, draws):
                yield reading(text, finished) == (winner,)

        best, least, name = image.pixels, CHOOSING + 1, ""
        for attack in vote_attacks(plan.steps, plan.restarts):
            pipeline = FeaturePipeline(
                self._asker.smoother,
                key.sigma,
                image.grid,
                draws=plan.draws,
                seed=seed + 1,
                batch_size=self._batch_size,
            )
            (found,) = run_attack(
                attack,
                [pipeline],
                image.pixels[None].to(device),
                ball,
                answers=scorer,
                seed=seed,
                report=lambda: advance(plan.draws, 0),
            ).cpu()
            left = sum(islice(votes(found, "choosing"), CHOOSING))
            advance(0, CHOOSING)
            if left < least:
                best, least, name = found, left, attack.name
        copies, for_winner, turned = judge(votes(best, "judging"), plan.judging)
        advance(0, copies)
        distance = float(torch.linalg.vector_norm(best - image.pixels))
        return VoteAttack(key, radius, distance, name, copies, for_winner, turned)


def judge(votes: Iterable[bool], most: int) -> tuple[int, int, bool]:
    """Whether the winner's share is below one half: its upper bound from ``most`` fresh copies says so, at 0.999.

    It ends before ``most`` where the rest cannot change the bound's verdict, and where a confidence sequence shows that
    the share is above one half, which it does wrongly with a probability of at most 1e-4.

    Args:
        votes: For or against the winner, of one fresh copy after another.
        most: How many at most.

    Returns:
        Copies that voted, those for the winner, and whether the vote is turned.
    """
    most_turned = _most_turned(most)
    sequence, new, look = NormConfidenceSequence(_HELD), list[float](), _FIRST_LOOK
    copies = for_winner = 0
    for vote in islice(votes, most):
        copies, for_winner = copies + 1, for_winner + vote
        new.append(1.0 if vote else -1.0)
        if for_winner > most_turned:
            return copies, for_winner, False
        if for_winner + most - copies <= most_turned:
            return copies, for_winner, True
        if copies == look:
            look += max(_FIRST_LOOK, look // 4)
            sequence.update(np.array(new))
            new.clear()
            if sequence.lower > 0:
                return copies, for_winner, False
    return copies, for_winner, False


@functools.cache
def _most_turned(copies: int) -> int:
    """Votes for the winner, of so many, up to which the upper bound of its share is below one half; -1 for none."""
    return bisect.bisect_left(range(copies), True, key=lambda count: share_at_most(count, copies, _BOUND) >= 0.5) - 1
