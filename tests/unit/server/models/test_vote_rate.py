"""How fast votes are, of all requests together, and how many are to come."""

import pytest

from server.models.vote_rate import VoteRate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_is_known_before_the_first_vote() -> None:
    clock = Clock()
    rate = VoteRate(clock)
    with rate.running(lambda: 8):
        clock.now += 1
        assert rate.per_second is None
        assert rate.waiting == 8
    assert rate.waiting == 0


def test_votes_of_requests_at_once_count_together() -> None:
    clock = Clock()
    rate = VoteRate(clock)
    with rate.running(lambda: 3), rate.running(lambda: 4):
        assert rate.waiting == 7
        for _ in range(20):
            clock.now += 0.1
            rate.count()
    assert rate.per_second == pytest.approx(10, rel=0.02)


def test_idle_time_does_not_count() -> None:
    clock = Clock()
    rate = VoteRate(clock)
    for _ in range(2):
        with rate.running(lambda: 1):
            clock.now += 1
            rate.count()
        clock.now += 3600
    assert rate.per_second == pytest.approx(1, rel=0.02)


def test_what_is_long_ago_weighs_little() -> None:
    clock = Clock()
    rate = VoteRate(clock)
    with rate.running(lambda: 1):
        for seconds, votes in ((1, 600), (0.1, 6000)):  # ten minutes each, of voting
            for _ in range(votes):
                clock.now += seconds
                rate.count()
    assert rate.per_second == pytest.approx(10, rel=0.02)


def test_a_vote_that_fails_waits_no_longer() -> None:
    rate = VoteRate()
    with pytest.raises(ZeroDivisionError), rate.running(lambda: 5):
        raise ZeroDivisionError
    assert rate.waiting == 0
