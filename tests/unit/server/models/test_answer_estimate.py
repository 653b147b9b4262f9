"""What a certified answer would cost, against votes that are taken."""

from types import SimpleNamespace
from typing import Any

import pytest

from fs_runtime.engine import CertificateTerms
from fs_runtime.votes import WholeText
from server.models.answer_estimate import AnswerEstimate, estimate_answer
from server.models.vote_rate import VoteRate
from server.robustness.answer_plan import AnswerPlan

from .test_voting import Answers, voted

UNKNOWN = SimpleNamespace(seconds_for=lambda samples: None, copy_bytes=None)


def estimate(
    *, samples: int = 128, radius: float = 0.125, engine: Any = UNKNOWN, rate: VoteRate | None = None, **options: Any
) -> AnswerEstimate:
    plan = AnswerPlan(WholeText(), samples, radius, options.get("space", "model"), options.get("adaptive", True), [])
    terms = CertificateTerms(0.25, 0.999)
    return estimate_answer(
        plan, terms, options.get("images", 1), model="m", engine=engine, rate=VoteRate() if rate is None else rate
    )


@pytest.mark.parametrize("samples", [1, 20, 64, 128])
@pytest.mark.parametrize("radius", [0.05, 0.125, 0.3, 0.36, 5.0])
@pytest.mark.parametrize("adaptive", [True, False])
def test_it_is_what_a_vote_takes_where_all_agree(samples: int, radius: float, adaptive: bool) -> None:
    expected = estimate(samples=samples, radius=radius, adaptive=adaptive)
    taken = voted(Answers(lambda _: "red"), samples=samples, radius=radius, adaptive=adaptive)[1]
    assert expected.expected_samples == taken.samples
    assert expected.max_samples == samples
    if taken.samples == samples:
        assert expected.most_radius == pytest.approx(taken.radius.model, abs=1e-9)


def test_a_radius_on_images_as_sent_depends_on_their_size() -> None:
    assert estimate(space="client").expected_samples is None
    assert estimate(space="client", adaptive=False).expected_samples == 128


def test_times_are_those_of_all_that_waits() -> None:
    unknown = estimate()
    assert (unknown.smoothing_seconds, unknown.voting_seconds, unknown.seconds) == (None, None, None)
    assert unknown.copy_bytes is None
    now = iter(range(100))
    rate = VoteRate(lambda: next(now))
    engine = SimpleNamespace(seconds_for=lambda samples: samples / 1000, copy_bytes=50)
    with rate.running(lambda: 68):
        rate.count()
        known = estimate(engine=engine, rate=rate, adaptive=False, images=3)
    assert known.waiting_votes == 68
    assert known.copy_bytes == 150
    assert known.smoothing_seconds == pytest.approx(3 * 128 / 1000)
    assert known.voting_seconds == pytest.approx(128 + 68)  # one a second
    assert known.seconds == known.voting_seconds
