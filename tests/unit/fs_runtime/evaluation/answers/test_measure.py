"""The run: what it keeps, what it goes on with, and what it attacks."""

import pytest

from fs_runtime.certificate import VoteCount
from fs_runtime.evaluation.answers.ask import CopyAsker
from fs_runtime.evaluation.answers.measure import VoteRun, settings_of
from fs_runtime.evaluation.answers.plan import VotePlan
from fs_runtime.evaluation.answers.records import VoteAttack, VoteAttackFile, VoteAttackKey, VoteFile, VoteKey

from .conftest import item, votes_of

PLAN = VotePlan((0.25,), (32, 64), attacked=2)
COPIES = (["red"] * 4 + ["blue"] * 60, ["red"] * 64, ["Blue.", "blue", "Blue."] * 22, ["red"] * 64)


class WrittenVotes(CopyAsker):
    """Answers as they are written down."""

    class smoother:
        class encoder:
            prepare = staticmethod(lambda picture: picture)

    def __init__(self, stop_after: int = 100) -> None:
        self.asked: list[tuple[VoteKey, int]] = []
        self.left = stop_after

    def votes_on(self, key, item, plan, seed, advance=lambda copies: None):
        if seed:  # not one that is only timed
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            self.asked.append((key, seed))
        advance(plan.samples[-1])
        return votes_of(COPIES[key.item], key.item, key.sigma)


@pytest.fixture
def files(tmp_path):
    def opened(count=4):
        settings = {"items": {str(number): "sha256:0" for number in range(count)}}
        votes = VoteFile(tmp_path / "votes.jsonl", PLAN.vote_settings() | settings)
        return votes, VoteAttackFile(tmp_path / "attacks.jsonl", PLAN.attack_settings() | settings)

    return opened


def test_it_goes_on_where_it_was_stopped(files):
    whole, first, second = WrittenVotes(), WrittenVotes(stop_after=2), WrittenVotes()
    VoteRun(PLAN, [item()] * 4, whole, VoteFile(files()[0]._path.with_name("whole.jsonl"), {})).measure()
    with pytest.raises(KeyboardInterrupt):
        VoteRun(PLAN, [item()] * 4, first, files()[0]).measure()
    votes, _ = files()
    assert len(votes.results) == 2
    run = VoteRun(PLAN, [item()] * 4, second, votes)
    assert run.missing == [VoteKey(2, 0.25), VoteKey(3, 0.25)]
    run.measure()
    assert first.asked + second.asked == whole.asked
    assert len({seed for _, seed in whole.asked}) == 4
    assert files()[0].results == votes.results
    assert VoteRun(PLAN, [item()] * 4, WrittenVotes(), files()[0]).missing == []
    assert VoteRun(PLAN, [item()] * 4, WrittenVotes(), files()[0]).seconds == 0


def test_questions_may_be_added_and_other_settings_may_not(files, tmp_path):
    files(2)
    assert len(files(4)[0].settings["items"]) == 4
    other = VotePlan((0.25,), (32, 128))
    with pytest.raises(ValueError, match="other settings \\(samples\\)"):
        VoteFile(tmp_path / "votes.jsonl", other.vote_settings() | {"items": {}})
    with pytest.raises(ValueError, match="items 0"):
        VoteFile(tmp_path / "votes.jsonl", PLAN.vote_settings() | {"items": {"0": "sha256:1"}})


def test_the_first_certified_items_are_attacked_until_they_are_turned(files, monkeypatch):
    made = []

    class Attacker:
        def __init__(self, asker, scorer, plan):
            pass

        def attack(self, key, image, question, answer, winner, reading, radius, advance):
            made.append((key.item, key.ratio, answer, winner, radius))
            advance(8, 16)
            return VoteAttack(
                key, radius, key.ratio * radius, "vote-margin", 100, 0, key.item == 1 and key.ratio == 2.0
            )

    monkeypatch.setattr("fs_runtime.evaluation.answers.measure.VoteAttacker", Attacker)
    votes, turns = files()
    run = VoteRun(PLAN, [item()] * 4, WrittenVotes(), votes, turns, scorer=object())
    before = run.seconds
    assert before > 0
    run.measure()
    # The first item's pilot is split; the second is turned at 2 R; the third, which is wrong, never.
    assert [(number, ratio) for number, ratio, *_ in made] == [
        *((1, ratio) for ratio in (1.0, 1.5, 2.0)),
        *((2, ratio) for ratio in PLAN.attack_sizes),
    ]
    count = VoteCount[str](0.999)
    for copy in COPIES[2][:64]:
        count.add(copy)
    assert {(answer, winner) for number, _, answer, winner, _ in made if number == 2} == {("Blue.", "blue")}
    assert len({radius for *_, radius in made}) == 1
    made.clear()
    again = VoteRun(PLAN, [item()] * 4, WrittenVotes(), *files(), scorer=object())
    assert again.seconds == 0
    again.measure()
    assert made == []
    assert VoteAttackKey(2, 0.25, 4.0) in files()[1].results


def test_settings_name_every_part(asker, questions):
    found = settings_of(asker.smoother, asker.language, questions[:2])
    assert found["items"] == {"0": questions[0].digest, "1": questions[1].digest}
    assert found["language_model"] == asker.language.fingerprint
    assert all(found[name].startswith("sha256:") for name in ("encoder", "purifier", "mapper", "language_model"))
