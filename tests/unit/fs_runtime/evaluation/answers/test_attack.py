"""The verdict on attacked votes, and an attack on the reference model's."""

import itertools

import numpy as np
import pytest

from fs_runtime.evaluation.answers.attack import VoteAttacker, judge
from fs_runtime.evaluation.answers.plan import VotePlan
from fs_runtime.evaluation.answers.records import VoteAttackKey
from fs_runtime.evaluation.intervals import share_at_most
from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.reference import reference_model_path
from fs_runtime.votes import WholeText, normalised


@pytest.mark.parametrize(("share", "verdicts"), [(0.1, {True}), (0.45, {True, False}), (0.9, {False})])
def test_the_verdict_is_that_of_all_copies(share, verdicts):
    """Judging ends early, and says what the upper bound from all 1,000 copies says."""
    rng = np.random.default_rng(1)
    found = set()
    for votes in rng.random((20, 1000)) < share:
        copies, for_winner, turned = judge(iter(votes.tolist()), 1000)
        assert turned == (share_at_most(int(votes.sum()), 1000, 0.999) < 0.5)
        assert for_winner == votes[:copies].sum()
        found.add(turned)
    assert found == verdicts


def test_a_vote_that_holds_is_judged_by_few_copies():
    copies, for_winner, turned = judge(itertools.repeat(True), 1000)
    assert copies == for_winner <= 24
    assert not turned
    assert share_at_most(450, 1000, 0.999) < 0.5 <= share_at_most(451, 1000, 0.999)
    assert judge(itertools.repeat(False), 1000) == (1000 - 450, 0, True)


@pytest.fixture(scope="module")
def scorer():
    return Answerer(reference_model_path())


def test_an_attack_turns_a_vote_far_outside_its_radius(asker, questions, scorer):
    sigma, item = 0.1, questions[0]
    image = asker.smoother.encoder.prepare(item.read())
    plan = VotePlan((sigma,), (32,), steps=4, restarts=1, draws=4, judging=48)
    done = []
    key = VoteAttackKey(0, sigma, 4.0)
    turn = VoteAttacker(asker, scorer, plan).attack(
        key,
        image,
        item.question,
        item.answer,
        normalised(item.answer),
        WholeText(),
        0.6,
        lambda gradients, copies: done.append((gradients, copies)),
    )
    assert turn.turned
    assert turn.key == key
    assert 0.6 < turn.distance < 4 * 0.6
    assert turn.for_winner < turn.copies / 2
    assert turn.loss in ("vote-likelihood", "vote-margin")
    gradients, copies = map(sum, zip(*done, strict=True))
    assert gradients == 2 * 5 * 4
    assert copies == 2 * 32 + turn.copies
