"""What the first n copies of an item say: the certified answer, the smoothed one, and what certifies neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fs_runtime.certificate import certified_radius
from fs_runtime.certificate.vote_bound import PILOT
from fs_runtime.evaluation.answers.items import VotedItem
from fs_runtime.evaluation.answers.plan import ADAPTIVE_RATIO, COSINE
from fs_runtime.evaluation.answers.records import CopyAnswers, ItemVotes
from fs_runtime.votes import Ballot, Choices, Reading, WholeText

Abstention = Literal["split", "agreement", "samples"]
_MANY = 1000  # times as many copies: what they would not certify, no number of them does


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Sampling that ends as soon as a radius is certified or out of reach.

    Attributes:
        copies: That were asked about, the pilot included.
        reached: Whether the radius is certified.
    """

    copies: int
    reached: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The first n copies of an item, by one reading.

    Attributes:
        clean: Whether the answer to the picture without noise is right.
        smoothed: The same of the answer to the mean features.
        returned: The same of the answer that is returned: the winner, or what is most frequent where there is none.
        radius: That the vote certifies, in pixels of [0, 1]; 0 for none.
        right: Whether the winner is the right answer.
        abstention: Why no radius is certified; None where one is. ``split``: the pilot chose no answer. ``agreement``:
            the copies agree too little. ``samples``: they are too few.
        agreement: Share of the votes for the winner; None where there is none.
        cosine_radius: At which the cosine similarity of the smoothed features is certified to be at least 0.5: another
            kind of statement, of features.
        adaptive: What adaptive sampling at the radius σ/2 makes of it.
    """

    clean: bool
    smoothed: bool
    returned: bool
    radius: float
    right: bool
    abstention: Abstention | None
    agreement: float | None
    cosine_radius: float
    adaptive: Adaptive

    def certified(self, radius: float) -> bool:
        """Whether the vote's winner is right, and certified at a radius."""
        return self.right and self.radius > 0 and self.radius >= radius

    def certified_cosine(self, radius: float) -> bool:
        """Whether the smoothed answer is right, and its features are certified at a radius."""
        return self.smoothed and self.cosine_radius > 0 and self.cosine_radius >= radius


def reading_of(name: str, item: VotedItem) -> Reading:
    """The function that is voted on, by its name in ``READINGS``."""
    return WholeText() if name == "text" else Choices(item.choices or ())


def outcome_of(
    record: ItemVotes, item: VotedItem, reading: str, samples: int, index: int, confidence: float
) -> Outcome:
    """Counts the first copies of an item.

    Args:
        record: The answers to its copies.
        item: The question.
        reading: In ``READINGS``.
        samples: n.
        index: Which of the measured n this is.
        confidence: 1 - α of the vote, and of ρ.
    """
    function, sigma = reading_of(reading, item), record.key.sigma
    votes = record.votes[reading]
    ballot = count_votes(votes, function, sigma, samples, confidence)
    (count,) = ballot.counts.values()
    (wanted,) = function(item.answer, True)
    (frequent,) = ballot.most_frequent
    radius = count.radius(sigma)
    return Outcome(
        clean=function(record.clean[reading], True) == (wanted,),
        smoothed=function(record.smoothed[reading][index], True) == (wanted,),
        returned=(frequent if count.winner is None else count.winner) == wanted,
        radius=radius,
        right=count.winner == wanted,
        abstention=None if radius > 0 else _abstention(ballot),
        agreement=count.agreement,
        cosine_radius=float(certified_radius(record.norm_lower[index], sigma, COSINE)),
        adaptive=adaptive_copies(votes, function, sigma, samples, confidence),
    )


def count_votes(votes: CopyAnswers, reading: Reading, sigma: float, samples: int, confidence: float) -> Ballot:
    """The votes of the first copies."""
    ballot = Ballot(reading, confidence, sigma, samples)
    for number in votes.copies[:samples]:
        ballot.add(votes.texts[number], votes.finished[number])
    return ballot


def adaptive_copies(votes: CopyAnswers, reading: Reading, sigma: float, samples: int, confidence: float) -> Adaptive:
    """Counts copies until σ/2 is certified or out of reach, at the looks that the server has."""
    radius = ADAPTIVE_RATIO * sigma
    ballot = Ballot(reading, confidence, sigma, samples)
    look = ballot.next_look(radius)
    for number in votes.copies[:samples]:
        ballot.add(votes.texts[number], votes.finished[number])
        if ballot.copies >= look:
            if ballot.settled(radius):
                break
            look = ballot.next_look(radius)
    return Adaptive(ballot.copies, ballot.reached(radius))


def _abstention(ballot: Ballot) -> Abstention:
    (count,) = ballot.counts.values()
    if count.split:
        return "split"
    within_reach = ballot.copies <= PILOT or count.likely_radius(ballot.sigma, _MANY * ballot.samples) > 0
    return "samples" if within_reach else "agreement"
