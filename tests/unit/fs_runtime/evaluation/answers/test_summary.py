"""Estimates over items, and curves, from outcomes that can be counted by hand."""

import json

import pytest

from fs_runtime.certificate import most_vote_radius, vote_radius
from fs_runtime.evaluation.answers.plan import VotePlan
from fs_runtime.evaluation.answers.plots import steps, write_plots
from fs_runtime.evaluation.answers.records import VoteAttack, VoteAttackKey
from fs_runtime.evaluation.answers.report import markdown, write_report
from fs_runtime.evaluation.answers.summary import Outcomes, turn_summaries, turning_distances
from fs_runtime.evaluation.intervals import proportion

from .conftest import item, votes_of

PLAN = VotePlan((0.25, 0.5), (32, 64))
COPIES = (
    ["red"] * 64,
    ["red"] * 32 + ["blue"] * 32,
    ["blue"] * 64,
    ["red"] * 4 + ["blue"] * 60,
    ["red"] * 8 + ["red", "blue"] * 28,
)


@pytest.fixture
def outcomes():
    records = [votes_of(copies, number) for number, copies in enumerate(COPIES)]
    return Outcomes(PLAN, [item()] * 5, {record.key: record for record in records})


def test_shares_are_counted(outcomes):
    few, many = outcomes.summaries()
    assert [(one.reading, one.sigma, one.samples, one.items) for one in (few, many)] == [
        ("text", 0.25, 32, 5),
        ("text", 0.25, 64, 5),
    ]
    # 24 votes that all agree certify more than σ/2, for good, whatever comes later; the third item's are wrong
    assert few.certified[0] == proportion(2, 5)
    assert few.certified[1] == proportion(0, 5)
    assert many.certified == [proportion(2, 5), proportion(1, 5), proportion(0, 5)]
    assert few.certified_wrong == many.certified_wrong == proportion(1, 5)
    assert few.abstentions == {"split": 1, "agreement": 1}
    assert (few.returned, many.returned) == (proportion(3, 5), proportion(3, 5))
    assert (few.smoothed, many.smoothed) == (proportion(0, 5), proportion(5, 5))
    assert few.cosine[0] == proportion(0, 5)
    assert many.cosine[0] == proportion(5, 5)
    assert few.agreement.value == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert (few.adaptive_median, few.adaptive_reached) == (32, proportion(3, 5))
    assert (few.smoothing, many.smoothing, many.answering) == (1.0, 2.0, 1.0)


def test_the_curve_ends_where_the_radii_do():
    x, y = steps([0.3, 0.2, 0.2], 4)
    assert x == [0.0, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3]
    assert y == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0]
    assert steps([], 4) == ([0.0], [0.0])


def test_reports_and_plots(outcomes, tmp_path):
    turns = turned(0, (1.0, 1.5), True)
    written = write_report(tmp_path, outcomes, turns, {"seed": 0}) + write_plots(tmp_path, outcomes)
    assert sorted(path.name for path in written) == [
        "answers.json",
        "answers.md",
        "text-sigma-0.25.png",
        "text.png",
    ]
    assert all(path.stat().st_size for path in written)
    found = json.loads((tmp_path / "answers.json").read_text())
    curve = found["curves"][1]
    assert curve["limit"] == most_vote_radius(56, 0.999, 0.25) == vote_radius(0.001 ** (1 / 56), 0.25)
    assert max(curve["votes"]) <= curve["limit"]
    assert len(curve["votes"]) == 2
    assert len(curve["cosine"]) == 5
    text = (tmp_path / "answers.md").read_text()
    assert "**Another kind of statement**" in text
    assert "| 0.25 | 64 | 5 | 100.0% (56.6 to 100.0) |" in text
    assert "1 of 1 votes were turned by some size, at a median ℓ2 distance of 0.300, 1.50 times" in text
    assert markdown(PLAN, [], []) == "Nothing is measured yet.\n"


def turned(number, ratios, last):
    return [
        VoteAttack(
            VoteAttackKey(number, 0.25, ratio), 0.2, 0.2 * ratio, "vote-margin", 100, 30, last and ratio == ratios[-1]
        )
        for ratio in ratios
    ]


def test_a_turned_vote_counts_at_larger_sizes():
    turns = [*turned(0, (1.0, 1.5), True), *turned(3, (1.0, 1.5, 2.0), True), *turned(5, (1.0, 1.5, 2.0), False)]
    found = turn_summaries(turns)
    assert [(one.ratio, one.attacked) for one in found] == [(1.0, 3), (1.5, 3), (2.0, 2)]
    assert [one.turned for one in found] == [proportion(0, 3), proportion(1, 3), proportion(2, 3)]
    assert found[0].share.value == 0.3
    (distance,) = turning_distances(turns)
    assert (distance.attacked, distance.turned) == (3, 2)
    assert (distance.distance, distance.multiple) == pytest.approx((0.35, 1.75))
    (none,) = turning_distances(turned(0, (1.0,), False))
    assert (none.turned, none.distance) == (0, None)
