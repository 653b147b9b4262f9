"""The radius of a vote: what the answers to noisy copies say of the answer to every picture nearby.

h(copy) is any function of one noisy copy, here what is read from the model's answer to it. Let a be the most frequent
value among a *pilot* of copies that is not used again, and p a lower bound of p_a = P(h(x + δ) = a). Then with the
bound's confidence, for every x' with ‖x' - x‖ < R = σ Φ⁻¹(p), the value that h gives most often to noisy copies of x'
is a (docs/guarantee.md section 14).

p comes from the confidence sequence that exists: X_i = +1 where copy i votes for a, else -1, has the mean 2 p_a - 1.
It holds at every number of copies at once, so whoever counts may stop at any time. Copies enter in the order in which
they were drawn: answers that are short, hence soon there, may be of another kind than those that are long.

Source: Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019, with a
confidence sequence in place of their interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np
from scipy.special import ndtri

from fs_runtime.certificate.arguments import confidence_value
from fs_runtime.certificate.confidence_sequence import NormConfidenceSequence

PILOT = 8
"""Copies that choose the value, and do not vote for it."""

Value = TypeVar("Value", bound=Hashable)

_ROUNDED = 1 - 1e-12  # more than the arithmetic of R is wrong by: an attack of the stated size lies inside
# Forecasts of what copies like those so far would certify need so many of them.
_LIKELY_FROM = 32
_LIKELY_ERRORS = 4.0
_BETS = 1 + np.array([4.0**k for k in range(-4, 3)])


def vote_radius(share: float, sigma: float) -> float:
    """R = σ Φ⁻¹(p), rounded inwards; 0 where p is at most one half.

    Args:
        share: p, a lower bound of the part of noisy copies with the value, in [0, 1].
        sigma: σ, the standard deviation of the noise, in pixels of [0, 1].

    Raises:
        ValueError: An argument is NaN or out of its range.

    Example:
        >>> round(vote_radius(share=0.9, sigma=0.25), 3)
        0.32
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be a finite number of at least 0, got {sigma}")
    below = math.nextafter(min(share, 1 - 2**-53), 0)  # who halved and added may have rounded up
    return 0.0 if below <= 0.5 else float(sigma * ndtri(below) * _ROUNDED)


def most_vote_radius(copies: int, confidence: float, sigma: float) -> float:
    """Largest R that this many copies certify if all of them agree, by any method: σ Φ⁻¹(α^(1/n)).

    Args:
        copies: n, those of the pilot left out.
        confidence: 1 - α.
        sigma: σ.

    Example:
        >>> round(most_vote_radius(128, confidence=0.999, sigma=1.0), 2)
        1.62
    """
    return vote_radius(math.exp(math.log1p(-confidence_value(confidence)) / copies), sigma) if copies > 0 else 0.0


class VoteCount(Generic[Value]):
    """Counts votes in the order of the copies; chooses a value by the first of them, and bounds its share.

    Args:
        confidence: 1 - α of the bound.
        pilot: Copies that choose.

    Attributes:
        counts: How often each value occurred, the pilot included. None is no value.
        copies: Copies so far, the pilot included.
        winner: The value that the bound speaks of; None until the pilot is there, and where it chose none.

    Raises:
        ValueError: ``confidence`` is outside (0, 1), or ``pilot`` below 1.

    Example:
        >>> votes = VoteCount(confidence=0.999)
        >>> for _ in range(8 + 96):
        ...     votes.add("red")
        >>> votes.winner, round(votes.radius(sigma=0.25), 3)
        ('red', 0.369)
    """

    def __init__(self, confidence: float, pilot: int = PILOT) -> None:
        if pilot < 1:
            raise ValueError(f"pilot must be at least 1, got {pilot}")
        self._past = NormConfidenceSequence(confidence)
        self._new: list[float] = []  # votes that are not in the sequence yet: it takes many as fast as one
        self._pilot = pilot
        self._for_winner = 0
        self.counts: Counter[Value | None] = Counter()
        self.copies = 0
        self.winner: Value | None = None

    @property
    def split(self) -> bool:
        """Whether the pilot is there and chose nothing: a tie, or no copy with a value. Nothing is certified then."""
        return self.copies >= self._pilot and self.winner is None

    @property
    def counted(self) -> int:
        """Copies that voted for or against the winner: those after the pilot."""
        return self._past.count + len(self._new)

    @property
    def agreement(self) -> float | None:
        """Share of those that voted for it: an estimate of p_a. None while there are none."""
        return self._for_winner / self.counted if self.counted else None

    @property
    def share(self) -> float:
        """p: the lower bound of p_a, at least one half; where it is one half nothing is certified."""
        return _share(float(self._sequence.lower))

    @property
    def _sequence(self) -> NormConfidenceSequence:
        if self._new:
            self._past.update(np.array(self._new))
            self._new.clear()
        return self._past

    def add(self, value: Value | None) -> None:
        """Counts the vote of the next copy.

        Args:
            value: What its answer says; None where nothing can be read from it, which never wins.
        """
        self.copies += 1
        self.counts[value] += 1
        if self.copies == self._pilot:
            self.winner = _most_frequent(self.counts)
        elif self.copies > self._pilot and self.winner is not None:
            agrees = value == self.winner
            self._for_winner += agrees
            self._new.append(1.0 if agrees else -1.0)

    def radius(self, sigma: float) -> float:
        """The certified R, in the unit of σ; 0 for none."""
        return vote_radius(self.share, sigma)

    def best_radius(self, sigma: float, copies: int) -> float:
        """R at so many copies in all, pilot included, if all further ones vote for the winner; none can be larger."""
        if self.split:
            return 0.0
        counted = max(0, copies - max(self._pilot, self.copies)) + self.counted
        return vote_radius(_share(float(self._sequence.forecast(1.0, counted))), sigma)

    def likely_radius(self, sigma: float, copies: int, errors: float = 0.0) -> float:
        """R at so many copies in all if further ones agree as often as those so far: an estimate, not certified.

        Args:
            sigma: σ.
            copies: In all, pilot included.
            errors: How many standard errors better they are than those so far.
        """
        if self.agreement is None or self.split:
            return self.best_radius(sigma, copies)
        # One vote of each kind added keeps the error above 0 where all agree.
        smoothed = (self._for_winner + 1) / (self.counted + 2)
        share = min(1.0, self.agreement + errors * math.sqrt(smoothed * (1 - smoothed) / self.counted))
        counted = max(0, copies - self.copies) + self.counted
        return vote_radius(_share(_usual_lower(share, counted, self._sequence.confidence)), sigma)

    def copies_for(self, radius: float, sigma: float, most: int) -> int:
        """About how many copies in all certify a radius, if they agree as those so far do: where to look next.

        A multiple of the pilot beyond the copies so far; ``most`` where more would be needed.
        """
        forecast = self.best_radius if self.agreement in (None, 1.0) else self.likely_radius
        low = self.copies // self._pilot + 1  # in pilots
        high = max(low, -(-most // self._pilot))
        while low < high:
            middle = (low + high) // 2
            if forecast(sigma, middle * self._pilot) >= radius:
                high = middle
            else:
                low = middle + 1
        return min(most, low * self._pilot)

    def out_of_reach(self, radius: float, sigma: float, copies: int) -> bool:
        """Whether so many copies in all will not certify a radius: surely, or by four standard errors."""
        if self.split or self.best_radius(sigma, copies) < radius:
            return True
        return self.counted >= _LIKELY_FROM and self.likely_radius(sigma, copies, _LIKELY_ERRORS) < radius


def _usual_lower(share: float, count: int, confidence: float) -> float:
    """About what the sequence shows after so many votes of which this share is +1: the root of its best constant bet.

    A bet b turns n votes into ((b + 1)^s (b - 1)^(1 - s))^n / (b + m)^n, which is 1/α at the root m.
    """
    if count == 0:
        return 0.0
    threshold = -math.log1p(-confidence) / count
    growth = share * np.log(_BETS + 1) + (1 - share) * np.log(_BETS - 1)
    return float(np.max(np.exp(growth - threshold) - _BETS))


def _share(lower: float) -> float:
    return (1 + max(0.0, lower)) / 2


def _most_frequent(counts: Counter[Value | None]) -> Value | None:
    """The value that occurs most often; None if two do, or none occurs."""
    ordered = [(value, count) for value, count in counts.most_common() if value is not None]
    if not ordered or (len(ordered) > 1 and ordered[0][1] == ordered[1][1]):
        return None
    return ordered[0][0]
