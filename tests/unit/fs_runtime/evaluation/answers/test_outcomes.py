"""Outcomes of votes whose law is known, against counting by hand and the certificate's own functions."""

import numpy as np
import pytest
from scipy.stats import norm

from fs_runtime.certificate import VoteCount, certified_radius, vote_radius
from fs_runtime.evaluation.answers.outcomes import adaptive_copies, outcome_of, reading_of
from fs_runtime.votes import Ballot, WholeText

from .conftest import item, votes_of


def outcome(copies, samples, index=1, **options):
    return outcome_of(votes_of(copies, **options), item(), "text", samples, index, 0.999)


def test_the_radius_is_that_of_the_votes_after_the_pilot():
    copies = ["RED", "red."] * 30 + ["blue"] * 2 + ["red"] * 2
    found = outcome(copies, 64)
    count = VoteCount[str](0.999)
    for copy in copies:
        count.add(copy.strip(".").lower())
    assert found.radius == count.radius(0.25) == vote_radius(count.share, 0.25) > 0.2
    assert found.agreement == pytest.approx(54 / 56)
    assert (found.right, found.returned, found.clean, found.smoothed) == (True, True, True, True)
    assert found.abstention is None
    assert found.cosine_radius == certified_radius(0.9, 0.25, 0.5)


def test_fewer_copies_are_the_first_of_more():
    copies = ["red"] * 32 + ["blue"] * 32
    assert outcome(copies, 32, 0) == outcome(copies[:32] + ["green"] * 500, 32, 0)
    assert outcome(copies, 32, 0).radius > 0
    assert not outcome(copies, 32, 0).smoothed  # the first n's own smoothed answer, and its own ρ
    assert outcome(copies, 32, 0).cosine_radius == certified_radius(0.45, 0.25, 0.5)


def test_right_and_certified_takes_both():
    wrong = outcome(["blue"] * 64, 64)
    assert wrong.radius > 0
    assert not wrong.right
    assert not wrong.certified(0.0)
    right = outcome(["red"] * 64, 64)
    assert right.certified(right.radius)
    assert not right.certified(right.radius * 1.001)
    assert right.certified_cosine(right.cosine_radius)
    assert not right.certified_cosine(right.cosine_radius * 1.001)
    assert not outcome(["red"] * 64, 32, 0).certified_cosine(0.0)  # its smoothed answer is blue


@pytest.mark.parametrize(
    ("copies", "why"),
    [
        (["red"] * 4 + ["blue"] * 4 + ["red"] * 56, "split"),
        (["…red"] * 64, "split"),  # cut off: no value, whatever it says
        (["red"] * 8 + ["blue", "red"] * 28, "agreement"),
        (["red"] * 8 + ["red", "red", "blue"] * 18 + ["red"] * 2, "samples"),
    ],
)
def test_why_nothing_is_certified(copies, why):
    found = outcome(copies, 64)
    assert found.abstention == why
    assert not found.certified(0.0)


def test_what_is_returned_where_the_pilot_is_split():
    found = outcome(["red"] * 4 + ["blue"] * 4 + ["red"] * 56, 64)
    assert found.returned
    assert not found.right


def test_choices_are_read_as_choices():
    record = votes_of(["red", " Red. "] * 32)
    record.votes["choices"] = record.votes["text"]
    record.clean["choices"], record.smoothed["choices"] = "blue", ["red", "blue"]
    found = outcome_of(record, item("RED"), "choices", 64, 1, 0.999)
    assert found.radius > 0.25
    assert (found.right, found.clean, found.smoothed) == (True, False, False)
    assert reading_of("choices", item()).description()["choices"] == ["red", "blue"]


def test_certified_radii_are_below_that_of_the_law():
    """P(R > σ Φ⁻¹(p)) ≤ α: of 200 votes with α = 0.2 at most 40 and three standard errors; some come near."""
    rng = np.random.default_rng(9)
    truth, radii = 0.25 * norm.ppf(0.9), []
    for copies in rng.random((200, 56)) < 0.9:
        record = votes_of(["red"] * 8 + ["red" if one else "blue" for one in copies])
        radii.append(outcome_of(record, item(), "text", 64, 1, 0.8).radius)
    assert sum(radius > truth for radius in radii) <= 40 + 3 * (200 * 0.2 * 0.8) ** 0.5
    assert np.median(radii) > 0.5 * truth


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 1.0])
def test_adaptive_sampling_ends_at_the_first_look_that_settles_it(share):
    rng = np.random.default_rng(3)
    texts = ["red" if one else "blue" for one in rng.random(512) < share]
    found = adaptive_copies(votes_of(texts).votes["text"], WholeText(), 0.25, 512, 0.999)
    ballot = Ballot(WholeText(), 0.999, 0.25, 512)
    looks = [ballot.next_look(0.125)]
    for text in texts[: found.copies]:
        assert not (ballot.copies == looks[-1] and ballot.settled(0.125))
        if ballot.copies == looks[-1]:
            looks.append(ballot.next_look(0.125))
        ballot.add(text, True)
    assert found.copies in (looks[-1], 512)
    assert found.reached == ballot.reached(0.125)
    assert found.copies == 512 or ballot.settled(0.125)


def test_adaptive_sampling_by_the_law():
    """All agree: 24 votes certify σ/2; none of 32 copies agrees: it is out of reach at the first look."""
    assert adaptive_copies(votes_of(["red"] * 512).votes["text"], WholeText(), 0.25, 512, 0.999).copies == 32
    split = votes_of(["red", "blue"] * 256).votes["text"]
    found = adaptive_copies(split, WholeText(), 0.25, 512, 0.999)
    assert (found.copies, found.reached) == (32, False)
