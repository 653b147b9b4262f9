"""The radius of a vote: its figures, its order, what is forecast, and how often it is wrong."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from fs_runtime.certificate import NormConfidenceSequence, VoteCount, most_vote_radius, vote_radius
from fs_runtime.certificate.vote_bound import PILOT


def counted(votes: list[str | None], confidence: float = 0.999) -> VoteCount[str]:
    count: VoteCount[str] = VoteCount(confidence)
    for vote in votes:
        count.add(vote)
    return count


def test_radius_is_inside_the_law_of_the_vote() -> None:
    for share in (0.500001, 0.6, 0.9, 0.999, 1 - 1e-12, 1.0):
        radius = vote_radius(share, 0.25)
        assert 0 < radius < 0.25 * float(ndtri(share))
    assert ndtr(ndtri(0.9) - vote_radius(0.9, 0.25) / 0.25) > 0.5
    assert vote_radius(float(np.nextafter(0.5, 1)), 0.25) == 0.0  # it may be a half that was rounded up
    assert vote_radius(0.5, 0.25) == vote_radius(0.2, 0.25) == vote_radius(0.9, 0.0) == 0.0


@pytest.mark.parametrize(("share", "sigma"), [(math.nan, 1.0), (-0.1, 1.0), (1.1, 1.0), (0.9, -1.0), (0.9, math.inf)])
def test_radius_refuses_what_is_out_of_range(share: float, sigma: float) -> None:
    with pytest.raises(ValueError, match="must"):
        vote_radius(share, sigma)


@pytest.mark.parametrize(("copies", "ratio"), [(96, 1.48), (128, 1.62), (256, 1.93), (1000, 2.46)])
def test_information_limit(copies: int, ratio: float) -> None:
    assert most_vote_radius(copies, 0.999, 0.25) / 0.25 == pytest.approx(ratio, abs=0.005)
    assert most_vote_radius(0, 0.999, 0.25) == 0.0


@pytest.mark.parametrize(("ratio", "needed"), [(0.5, 24), (1.0, 48), (1.5, 104)])
def test_copies_that_agree_certify_with_few_more_than_any_method_needs(ratio: float, needed: int) -> None:
    count = counted(["a"] * PILOT)
    while count.radius(1.0) < ratio:
        for _ in range(8):
            count.add("a")
    assert count.counted == needed
    assert count.radius(1.0) <= most_vote_radius(count.counted, 0.999, 1.0)


@given(st.lists(st.sampled_from(["a", "b", "c", None]), max_size=60), st.sampled_from([0.9, 0.999]))
@settings(deadline=None)
def test_never_more_than_the_information_limit(votes: list[str | None], confidence: float) -> None:
    count = counted(votes, confidence)
    assert count.radius(1.0) <= most_vote_radius(count.counted, confidence, 1.0)
    assert count.counted == (0 if count.winner is None else max(0, len(votes) - PILOT))
    assert sum(count.counts.values()) == count.copies == len(votes)


def test_the_pilot_chooses_and_does_not_vote() -> None:
    count = counted(["a"] * 5 + ["b"] * 3)
    assert (count.winner, count.counted, count.agreement, count.radius(1.0)) == ("a", 0, None, 0.0)
    for _ in range(60):
        count.add("b")  # the pilot's choice stands, though others are more frequent now
    assert (count.winner, count.agreement, count.radius(1.0)) == ("a", 0.0, 0.0)
    assert count.counts.most_common(1) == [("b", 63)]


@pytest.mark.parametrize("pilot", [["a"] * 4 + ["b"] * 4, [None] * 8, ["a", "a", "b", "b", "c", "c", None, "d"]])
def test_a_pilot_that_chooses_nothing_certifies_nothing(pilot: list[str | None]) -> None:
    count = counted(pilot)
    assert count.split
    for _ in range(100):
        count.add("a")
    assert count.winner is None
    assert count.radius(1.0) == count.best_radius(1.0, 10_000) == count.likely_radius(1.0, 10_000) == 0.0
    assert count.out_of_reach(1e-9, 1.0, 10_000)


def test_what_cannot_be_read_votes_against() -> None:
    reads, fails = counted(["a"] * 100 + [None] * 4), counted(["a"] * 100 + ["b"] * 4)
    assert reads.share == fails.share
    assert counted([None] * 7 + ["a"]).winner == "a"  # what cannot be read wins nothing, however frequent


def test_votes_of_one_order_give_one_bound() -> None:
    """The bound is that of the confidence sequence over ±1, in order."""
    rng = np.random.default_rng(0)
    votes = ["a"] * PILOT + list(rng.choice(["a", "b"], 200, p=[0.9, 0.1]))
    sequence = NormConfidenceSequence(0.999)
    sequence.update(np.array([1.0 if vote == "a" else -1.0 for vote in votes[PILOT:]]))
    assert counted(votes).share == (1 + float(sequence.lower)) / 2


def test_forecasts() -> None:
    rng = np.random.default_rng(1)
    for share in (0.99, 0.9, 0.7):
        votes = ["a"] * PILOT + list(rng.choice(["a", "b"], 100, p=[share, 1 - share]))
        count = counted(votes)
        best = counted(votes + ["a"] * 400)
        assert count.best_radius(1.0, len(votes) + 400) >= best.radius(1.0) * (1 - 1e-9)
        assert count.best_radius(1.0, 0) == pytest.approx(count.radius(1.0))
        later = counted(votes + list(rng.choice(["a", "b"], 2000, p=[share, 1 - share])))
        likely = count.likely_radius(1.0, len(votes) + 2000, 4.0)
        assert later.radius(1.0) <= likely
        assert not count.out_of_reach(count.radius(1.0) * 0.99, 1.0, 300)
        assert count.out_of_reach(count.best_radius(1.0, 300) * 1.01, 1.0, 300)


def test_a_vote_that_is_even_is_soon_out_of_reach() -> None:
    count = counted(["a"] * PILOT + ["a", "b"] * 40)
    assert count.best_radius(1.0, 100_000) > 1.0  # certain it is not
    assert count.out_of_reach(1.0, 1.0, 100_000)


# Shares of the values; the rest of each is what cannot be read. The first are as near to a tie as can be.
LAWS = [(0.5, 0.5), (0.501, 0.499), (0.4, 0.3, 0.3), (0.6, 0.4), (0.9, 0.1), (0.97,), (0.5,)]


def misses(shares: tuple[float, ...], alpha: float, runs: int, copies: int, seed: int) -> int:
    """Runs that certify some radius by a bound above the winner's share, at any time."""
    rng = np.random.default_rng(seed)
    p = np.array([*shares, max(0.0, 1 - sum(shares))])
    votes = rng.choice(len(p), size=(copies, runs), p=p / p.sum())
    frequent = np.stack([(votes[:PILOT] == value).sum(0) for value in range(len(shares))])
    first = frequent.argmax(0)
    chosen = (frequent.max(0) > 0) & ((frequent == frequent.max(0)).sum(0) == 1)
    sequence = NormConfidenceSequence(1 - alpha, (runs,))
    sequence.update(np.where(votes[PILOT:] == first, 1.0, -1.0))
    lower = np.asarray(sequence.lower)  # it never falls, so this is every time at once
    return int((chosen & (lower > 0) & ((1 + lower) / 2 > p[first])).sum())


@pytest.mark.parametrize("law", range(len(LAWS)))
@pytest.mark.parametrize(
    ("runs", "copies"), [(8_000, 72), pytest.param(60_000, 264, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_coverage(law: int, runs: int, copies: int) -> None:
    """More misses than this have a chance of 1e-6 where the confidence is what it says."""
    alpha = 0.05
    assert misses(LAWS[law], alpha, runs, copies, seed=law) <= binom.isf(1e-6, runs, alpha)


def test_coverage_is_of_the_count_itself() -> None:
    """The runs above are made as the count makes them."""
    rng = np.random.default_rng(5)
    votes = rng.choice(3, size=(72, 40), p=[0.7, 0.2, 0.1])
    for run in votes.T:
        count: VoteCount[int] = VoteCount(0.95)
        for vote in run:
            count.add(None if vote == 2 else int(vote))
        if count.winner is None:
            continue
        sequence = NormConfidenceSequence(0.95, (1,))
        sequence.update(np.where(run[PILOT:] == count.winner, 1.0, -1.0)[:, None])
        assert count.share == pytest.approx((1 + float(np.asarray(sequence.lower)[0])) / 2, abs=1e-15)
