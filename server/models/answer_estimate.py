"""What a certified answer would cost, before anything is drawn for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fs_runtime.certificate import VoteCount
from fs_runtime.engine import CertificateTerms, SmoothingEngine
from fs_runtime.votes import FIRST_LOOK
from server.models.vote_rate import VoteRate
from server.robustness.answer_plan import AnswerPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerEstimate:
    """The answer to a request for an estimate.

    Attributes:
        object: What this is.
        model: That would answer.
        images: Of the request; each copy holds all of them.
        max_samples: Copies that would be asked about at most.
        expected_samples: Copies that would be asked about if all of them agree. None where that depends on the sizes of
            the images, which nobody has looked at.
        most_radius: Radius, on the encoder's images, that would be certified if all ``max_samples`` copies agree; no
            vote certifies more.
        waiting_votes: Copies that requests under way may still ask about.
        copy_bytes: Memory of one copy of all images, if they are of the size of the latest that was drawn; None before
            the first.
        smoothing_seconds: Until the expected copies are drawn, behind what is queued, at the rate of late; None where
            that is not known.
        voting_seconds: Until all that waits and they are voted on, likewise.
        seconds: Until the answer: the larger of both, since they go on at once. None where one is not known.
    """

    object: Literal["answer.estimate"] = "answer.estimate"
    model: str
    images: int
    max_samples: int
    expected_samples: int | None
    most_radius: float
    waiting_votes: int
    copy_bytes: int | None
    smoothing_seconds: float | None
    voting_seconds: float | None
    seconds: float | None


def estimate_answer(
    plan: AnswerPlan, terms: CertificateTerms, images: int, *, model: str, engine: SmoothingEngine, rate: VoteRate
) -> AnswerEstimate:
    """Estimates what a vote costs from its plan and from how fast others were.

    Args:
        plan: Of the vote.
        terms: σ and confidence.
        images: How many the request holds.
        model: Its name.
        engine: Draws the copies.
        rate: Of the model's votes.
    """
    expected = _copies_that_agree(plan, terms)
    at_most = plan.samples if expected is None else expected
    smoothing = engine.seconds_for(images * at_most)
    voting = None if rate.per_second is None else (rate.waiting + at_most) / rate.per_second
    copy_bytes = engine.copy_bytes
    return AnswerEstimate(
        model=model,
        images=images,
        max_samples=plan.samples,
        expected_samples=expected,
        most_radius=VoteCount[str](terms.confidence).best_radius(terms.sigma, plan.samples),
        waiting_votes=rate.waiting,
        copy_bytes=None if copy_bytes is None else images * copy_bytes,
        smoothing_seconds=smoothing,
        voting_seconds=voting,
        seconds=None if smoothing is None or voting is None else max(smoothing, voting),
    )


def _copies_that_agree(plan: AnswerPlan, terms: CertificateTerms) -> int | None:
    """After how many copies the vote ends if all say the same; None where the sizes of the images decide."""
    if not plan.adaptive:
        return plan.samples
    if plan.space != "model":
        return None
    votes = VoteCount[str](terms.confidence)
    if votes.out_of_reach(plan.radius, terms.sigma, plan.samples):  # which is seen at the first look
        return min(FIRST_LOOK, plan.samples)
    return votes.copies_for(plan.radius, terms.sigma, plan.samples)
