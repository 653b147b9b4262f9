"""Counts what is read from the answers to a request's copies, in the order of the copies."""

from __future__ import annotations

from fs_runtime.certificate import VoteCount
from fs_runtime.votes.reading import Reading, Value

FIRST_LOOK = 32
"""Copies, at most, after which it is looked for the first time whether a vote is settled."""


class Ballot:
    """One vote for each name of a reading, with a confidence of its own each.

    Args:
        reading: What is voted on.
        confidence: 1 - α of each statement.
        sigma: σ.
        samples: Copies that will be asked about at most, the pilot included.

    Attributes:
        counts: By name.
        copies: Votes so far.
        failed: Copies that no answer came for; they vote against the winner.
    """

    def __init__(self, reading: Reading, confidence: float, sigma: float, samples: int) -> None:
        self.reading = reading
        self.sigma = sigma
        self.samples = samples
        self.counts: dict[str, VoteCount[Value]] = {name: VoteCount(confidence) for name in reading.names}
        self.copies = 0
        self.failed = 0

    def add(self, text: str, finished: bool) -> tuple[Value | None, ...]:
        """Counts the answer to the next copy, and returns what was read from it."""
        values = self.reading(text, finished)
        self._count(values)
        return values

    def add_failure(self) -> None:
        """Counts the next copy, which no answer came for."""
        self.failed += 1
        self._count((None,) * len(self.counts))

    @property
    def winners(self) -> tuple[Value | None, ...]:
        """What the votes speak of, by name; None where the pilot chose none, or is not there."""
        return tuple(count.winner for count in self.counts.values())

    @property
    def most_frequent(self) -> tuple[Value | None, ...]:
        """By name, what occurred most often so far, the first of several; None where nothing could be read."""
        return tuple(
            next((value for value, _ in count.counts.most_common() if value is not None), None)
            for count in self.counts.values()
        )

    @property
    def split(self) -> bool:
        """Whether no name has a winner, nor will have one: further copies certify nothing."""
        return all(count.split for count in self.counts.values())

    @property
    def radius(self) -> float:
        """R that all names are certified at; 0 for none."""
        return min(count.radius(self.sigma) for count in self.counts.values())

    def reached(self, radius: float) -> bool:
        """Whether all names are certified at a radius."""
        return self.copies > 0 and self.radius >= radius and self.radius > 0

    def next_look(self, radius: float) -> int:
        """Copies in all after which to look whether it is :meth:`settled`: twice as many as there are, at most."""
        unsettled = [count for count in self.counts.values() if count.radius(self.sigma) < radius]
        most = min(self.samples, max(FIRST_LOOK, 2 * self.copies))
        return max((count.copies_for(radius, self.sigma, most) for count in unsettled), default=self.copies)

    def settled(self, radius: float) -> bool:
        """Whether further copies are of no use: each name is certified at the radius, or will not be."""
        return all(
            (count.radius(self.sigma) >= radius and count.radius(self.sigma) > 0)
            or count.out_of_reach(radius, self.sigma, self.samples)
            for count in self.counts.values()
        )

    def _count(self, values: tuple[Value | None, ...]) -> None:
        self.copies += 1
        for count, value in zip(self.counts.values(), values, strict=True):
            count.add(value)
