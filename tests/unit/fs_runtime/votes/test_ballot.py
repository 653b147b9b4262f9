"""The count of a request's votes: in order, by name, and when it is settled."""

from fs_runtime.votes import Ballot, Fields, WholeText


def ballot(reading: object = None, samples: int = 128) -> Ballot:
    return Ballot(reading or WholeText(), 0.999, 0.25, samples)  # type: ignore[arg-type]


def test_failures_vote_against_the_winner() -> None:
    failing, wrong = ballot(), ballot()
    for number in range(60):
        failing.add_failure() if number in (20, 40) else failing.add("red", True)
        wrong.add("blue" if number in (20, 40) else "red", True)
    assert failing.radius == wrong.radius > 0
    assert (failing.failed, failing.copies, failing.winners) == (2, 60, ("red",))


def test_each_field_has_a_vote_of_its_own() -> None:
    count = ballot(Fields(["/a", "/b"]))
    for number in range(100):
        count.add(f'{{"a": 1, "b": {number % 3}}}', True)
    a, b = count.counts.values()
    assert a.radius(0.25) > 0.3
    assert b.radius(0.25) == 0.0
    assert count.radius == 0.0
    assert count.winners[0] == "1"
    assert count.most_frequent == ("1", "0")
    assert not count.reached(0.1)
    assert count.settled(0.1)  # one is certified, the other will not be


def test_it_is_settled_where_the_radius_is_reached_and_not_before() -> None:
    count = ballot()
    look = count.next_look(0.125)
    assert look == 32
    for _ in range(look - 8):
        count.add("red", True)
    assert not count.settled(0.125)
    for _ in range(8):
        count.add("red", True)
    assert count.settled(0.125)
    assert count.reached(0.125)
    assert not count.reached(0.5)


def test_it_looks_later_where_copies_disagree() -> None:
    agree, differ = ballot(), ballot()
    for number in range(32):
        agree.add("red", True)
        differ.add("blue" if number in (10, 20) else "red", True)
    assert agree.next_look(0.25) == 56
    assert 56 < differ.next_look(0.25) <= 64  # and no later than at twice as many, where it knows more
    few = ballot(samples=40)
    for _ in range(32):
        few.add("red", True)
    assert few.next_look(0.9) == 40  # it would take more than there are


def test_a_split_pilot_settles_it() -> None:
    count = ballot()
    for number in range(8):
        count.add("red" if number % 2 else "blue", True)
    assert count.settled(0.001)
    assert count.winners == (None,)
    assert count.most_frequent == ("blue",)
