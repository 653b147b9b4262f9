"""What an answer of the server says of the vote on it: the object ``robustness.answer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fs_runtime.certificate import VoteCount
from fs_runtime.options import Space
from fs_runtime.votes import Ballot, Value
from server.robustness.answer_plan import AnswerPlan
from server.robustness.policy import AnswerRequirement, Decision, Verdict, consequence

_MOST_VALUES = 10
Shortfall = Literal["split", "agreement", "samples", "time"]
Outcome = Literal["certified", "smaller_radius", "uncertified"]
"""Whether an answer is certified at the asked radius, at a smaller one alone, or at none."""


@dataclass(frozen=True, slots=True)
class Radius:
    """An ℓ2 size of a change of all images together, in pixels of [0, 1].

    Attributes:
        model: On the encoder's images.
        client: On the images as sent.
    """

    model: float
    client: float


@dataclass(frozen=True, slots=True)
class VoteShare:
    """How many of the copies said one thing.

    Attributes:
        value: What was read from their answers; None for nothing.
        copies: How many.
    """

    value: Value | None
    copies: int


@dataclass(frozen=True, slots=True)
class CertifiedValue:
    """One value that was voted on, and what is certified of it.

    Attributes:
        name: JSON pointer of a field; ``text`` where the whole answer has one value.
        value: The winner; None where the pilot chose none.
        certified: Whether any radius is.
        radius: No change of the images, all together, below it turns the vote: at every such picture the value that
            is most frequent under noise is this one. 0 for none.
        satisfied: Whether it reaches the asked radius.
        agreement: Share of the votes for it, those of the pilot left out: an estimate. None where there are none.
        votes: The most frequent values, the pilot included.
        other_votes: Copies with any other value.
        shortfall: Why the asked radius is not reached; None where it is. ``split``: the first copies chose no value.
            ``agreement``: the copies disagree too much for it. ``samples``: more copies would do. ``time``: they ended.
    """

    name: str
    value: Value | None
    certified: bool
    radius: Radius
    satisfied: bool
    agreement: float | None
    votes: tuple[VoteShare, ...]
    other_votes: int
    shortfall: Shortfall | None


@dataclass(frozen=True, slots=True)
class AnswerUsage:
    """Tokens of all votes together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerEntry:
    """The vote on an answer.

    Attributes:
        certified: Whether all its values are, at some radius.
        satisfied: Whether all reach the asked radius.
        function: What was voted on: text, choices, pattern or fields.
        text: The winner; None where the pilot chose none, and for fields.
        radius: Certified for all values at once.
        asked_radius: That was to be reached.
        confidence: Of each value by itself.
        confidence_together: That everything stated in this answer of the server holds: each value, and of each image
            its certificate, what is served, fidelity and token map.
        sigma: Standard deviation of the noise.
        samples: Copies that were asked about, the pilot included.
        max_samples: Copies that would have been asked about at most.
        failed: Copies that no answer came for; they count against the winner.
        returned: Whether the text of the response is that of a copy with all the winners.
        verdicts: On each requirement of kind ``answer``.
        values: One, or one for each field.
        usage: Of all votes; that of the response is of the returned answer alone.
    """

    certified: bool
    satisfied: bool
    function: str
    text: Value | None
    radius: Radius
    asked_radius: Radius
    confidence: float
    confidence_together: float
    sigma: float
    samples: int
    max_samples: int
    failed: int
    returned: bool
    verdicts: tuple[Verdict, ...]
    values: tuple[CertifiedValue, ...]
    usage: AnswerUsage

    @classmethod
    def of(
        cls,
        ballot: Ballot,
        plan: AnswerPlan,
        spectral_norms: Sequence[float],
        confidence: float,
        usage: AnswerUsage,
        *,
        beside: int,
        in_time: bool,
        returned: bool,
    ) -> AnswerEntry:
        """Sums up a vote.

        Args:
            ballot: The votes.
            plan: What was asked.
            spectral_norms: ‖A‖₂ from each image as sent to the encoder's.
            confidence: 1 - α of each statement.
            usage: Of all votes.
            beside: Statements about the images, with an α each.
            in_time: Whether the votes ended by themselves.
            returned: Whether the response carries the winners.
        """
        scale = max(spectral_norms)
        asked = _asked(plan.radius, plan.space, scale)
        values = tuple(
            _value(name, count, ballot, asked, scale, in_time=in_time) for name, count in ballot.counts.items()
        )
        statements = len(values) + beside
        return cls(
            certified=all(value.certified for value in values),
            satisfied=all(value.satisfied for value in values),
            function=ballot.reading.kind,
            text=values[0].value if ballot.reading.kind != "fields" else None,
            radius=Radius(min(value.radius.model for value in values), min(value.radius.client for value in values)),
            asked_radius=asked,
            confidence=confidence,
            confidence_together=max(0.0, 1 - statements * (1 - confidence)),
            sigma=ballot.sigma,
            samples=ballot.copies,
            max_samples=plan.samples,
            failed=ballot.failed,
            returned=returned,
            verdicts=tuple(
                _verdict(requirement, ballot, plan, scale, in_time=in_time) for requirement in plan.requirements
            ),
            values=values,
            usage=usage,
        )

    @property
    def outcome(self) -> Outcome:
        """Where it is certified."""
        if self.satisfied:
            return "certified"
        return "smaller_radius" if self.certified else "uncertified"

    @property
    def agreement(self) -> float | None:
        """The least of its values' agreements; None where one has none."""
        agreements = [value.agreement for value in self.values]
        return None if None in agreements else min(share for share in agreements if share is not None)

    @property
    def shortfall(self) -> Shortfall | None:
        """Why the first value that falls short does; None where none does."""
        return next((value.shortfall for value in self.values if value.shortfall is not None), None)

    def decision(self, requirements: Sequence[AnswerRequirement]) -> Decision:
        """What follows from the verdicts."""
        return consequence(requirements, self.verdicts)


def model_radius(radius: float, space: Space, spectral_norms: Sequence[float]) -> float:
    """The size on the encoder's images, all together, that a change of this size can have.

    A change of the images as sent grows at most by the largest of their norms, whatever part of it is in which image.
    """
    return radius if space == "model" else radius * max(spectral_norms)


def _asked(radius: float, space: Space, scale: float) -> Radius:
    return Radius(radius, radius / scale) if space == "model" else Radius(radius * scale, radius)


def _value(
    name: str, count: VoteCount[Value], ballot: Ballot, asked: Radius, scale: float, *, in_time: bool
) -> CertifiedValue:
    radius = count.radius(ballot.sigma)
    satisfied = radius >= asked.model and radius > 0
    frequent = count.counts.most_common(_MOST_VALUES)
    return CertifiedValue(
        name=name,
        value=count.winner,
        certified=radius > 0,
        radius=Radius(radius, radius / scale),
        satisfied=satisfied,
        agreement=count.agreement,
        votes=tuple(VoteShare(value, copies) for value, copies in frequent),
        other_votes=count.copies - sum(copies for _, copies in frequent),
        shortfall=None if satisfied else _shortfall(count, ballot, asked.model, in_time=in_time),
    )


def _shortfall(count: VoteCount[Value], ballot: Ballot, radius: float, *, in_time: bool) -> Shortfall:
    if count.split:
        return "split"
    if not in_time:
        return "time"
    return "samples" if _within_reach(count, ballot, radius) else "agreement"


def _within_reach(count: VoteCount[Value], ballot: Ballot, radius: float) -> bool:
    """Whether copies that agree as often as those so far would reach a radius, were there enough of them."""
    return not count.split and count.likely_radius(ballot.sigma, 1_000 * max(ballot.samples, 1)) >= radius


def _verdict(
    requirement: AnswerRequirement, ballot: Ballot, plan: AnswerPlan, scale: float, *, in_time: bool
) -> Verdict:
    radius = model_radius(requirement.radius, requirement.space, [scale])
    if ballot.reached(radius):
        return "met"
    if not plan.full_budget or (plan.binds and not in_time):
        return "failed"  # who asks for few copies, or for long answers, would be undecided, which may be milder
    short = [count for count in ballot.counts.values() if count.radius(ballot.sigma) < radius]
    return "undecided" if all(_within_reach(count, ballot, radius) for count in short) else "failed"
