"""Estimates over the items, for each noise level, n and reading, with 95% intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fs_runtime.evaluation.answers.items import VotedItem
from fs_runtime.evaluation.answers.outcomes import Outcome, outcome_of
from fs_runtime.evaluation.answers.plan import CERTIFIED_RATIOS, VotePlan
from fs_runtime.evaluation.answers.records import READINGS, ItemVotes, VoteAttack, VoteKey
from fs_runtime.evaluation.intervals import Estimate, mean, proportion


@dataclass(frozen=True, slots=True)
class VoteSummary:
    """All items at one noise level and n, by one reading.

    Attributes:
        reading: In ``READINGS``.
        sigma: σ.
        samples: n, the pilot included.
        items: How many.
        clean: Accuracy without noise.
        smoothed: Of the answer to the mean features.
        returned: Of the answer that is returned.
        certified: Share right and certified by the vote, at each of ``CERTIFIED_RATIOS`` times σ.
        certified_wrong: Share whose vote is certified at some radius, and wrong.
        cosine: Share whose smoothed answer is right, and whose features are certified to have a cosine similarity of
            0.5, at the same radii. Another kind of statement.
        abstentions: Items without any certified radius, by reason.
        agreement: Mean share of votes for the winner, where there is one; None if there is none.
        adaptive_copies: Mean copies of adaptive sampling at radius σ/2.
        adaptive_median: Their median over the items whose votes all agree; None where no item's do.
        adaptive_reached: Share at which it certifies σ/2, right or not.
        smoothing: Median seconds of the smoothing pass over n copies; their share of the pass over all.
        answering: The same of free answers to n copies.
    """

    reading: str
    sigma: float
    samples: int
    items: int
    clean: Estimate
    smoothed: Estimate
    returned: Estimate
    certified: list[Estimate]
    certified_wrong: Estimate
    cosine: list[Estimate]
    abstentions: dict[str, int]
    agreement: Estimate | None
    adaptive_copies: Estimate
    adaptive_median: float | None
    adaptive_reached: Estimate
    smoothing: float
    answering: float


@dataclass(frozen=True, slots=True)
class TurnSummary:
    """Attacks of one size.

    Attributes:
        sigma: σ.
        ratio: Size as a multiple of each item's certified radius.
        attacked: Items that were attacked at this size: those that no smaller one turned.
        turned: Share of all attacked items that this size, or a smaller one, turned.
        share: Mean share of fresh copies that vote for the winner, among those attacked at this size.
        distance: Mean ℓ2 size of the change, among the same.
    """

    sigma: float
    ratio: float
    attacked: int
    turned: Estimate
    share: Estimate
    distance: Estimate


@dataclass(frozen=True, slots=True)
class TurningDistance:
    """How far the attacks went that turned a vote, the smallest size of each item that did.

    Attributes:
        sigma: σ.
        attacked: Items.
        turned: Those that were turned at all.
        distance: Median ℓ2 size of the change among them; None where there are none.
        multiple: The same as a multiple of the certified radius.
    """

    sigma: float
    attacked: int
    turned: int
    distance: float | None
    multiple: float | None


class Outcomes:
    """Counts each item's votes once, and keeps what they say.

    Args:
        plan: What was measured.
        items: The questions.
        records: Their votes.
    """

    def __init__(self, plan: VotePlan, items: Sequence[VotedItem], records: Mapping[Hashable, ItemVotes]) -> None:
        self.plan = plan
        self._records = [
            record
            for number in range(len(items))
            for sigma in plan.sigmas
            if (record := records.get(VoteKey(number, sigma))) is not None
        ]
        self._found = {
            (record.key, reading, n): outcome_of(record, items[record.key.item], reading, n, index, plan.confidence)
            for record in self._records
            for reading in record.votes
            for index, n in enumerate(plan.samples)
        }

    def of(self, reading: str, sigma: float, samples: int) -> list[Outcome]:
        """The outcomes of all items that have this reading."""
        return [
            outcome
            for (key, name, n), outcome in self._found.items()
            if (name, key.sigma, n) == (reading, sigma, samples)
        ]

    def records(self, reading: str, sigma: float) -> list[ItemVotes]:
        """The votes of the same items."""
        return [record for record in self._records if record.key.sigma == sigma and reading in record.votes]

    def summaries(self) -> list[VoteSummary]:
        """One for each reading, noise level and n that has items."""
        return [
            self._summary(reading, sigma, n)
            for reading in READINGS
            for sigma in self.plan.sigmas
            for n in self.plan.samples
            if self.records(reading, sigma)
        ]

    def _summary(self, reading: str, sigma: float, samples: int) -> VoteSummary:
        found, records = self.of(reading, sigma, samples), self.records(reading, sigma)
        part = samples / self.plan.samples[-1]
        agreements = [one.agreement for one in found if one.agreement is not None]
        unanimous = [one.adaptive.copies for one in found if one.agreement == 1]
        return VoteSummary(
            reading=reading,
            sigma=sigma,
            samples=samples,
            items=len(found),
            clean=_share([one.clean for one in found]),
            smoothed=_share([one.smoothed for one in found]),
            returned=_share([one.returned for one in found]),
            certified=[_share([one.certified(ratio * sigma) for one in found]) for ratio in CERTIFIED_RATIOS],
            certified_wrong=_share([one.radius > 0 and not one.right for one in found]),
            cosine=[_share([one.certified_cosine(ratio * sigma) for one in found]) for ratio in CERTIFIED_RATIOS],
            abstentions=dict(Counter(one.abstention for one in found if one.abstention is not None)),
            agreement=mean(agreements) if agreements else None,
            adaptive_copies=mean([one.adaptive.copies for one in found]),
            adaptive_median=median(unanimous) if unanimous else None,
            adaptive_reached=_share([one.adaptive.reached for one in found]),
            smoothing=part * median(record.smoothing for record in records),
            answering=part * median(record.answering for record in records),
        )


def turn_summaries(turns: Sequence[VoteAttack]) -> list[TurnSummary]:
    """One for each noise level and size that was tried."""
    found = []
    for sigma in sorted({turn.key.sigma for turn in turns}):
        own = [turn for turn in turns if turn.key.sigma == sigma]
        for ratio in sorted({turn.key.ratio for turn in own}):
            tried = [turn for turn in own if turn.key.ratio == ratio]
            # Items whose attacks have not come so far yet are left out, unless a smaller one turned them.
            done = {turn.key.item for turn in tried}
            turned = {turn.key.item for turn in own if turn.turned and turn.key.ratio <= ratio}
            found.append(
                TurnSummary(
                    sigma=sigma,
                    ratio=ratio,
                    attacked=len(tried),
                    turned=proportion(len(turned), len(done | turned)),
                    share=mean([turn.for_winner / turn.copies for turn in tried]),
                    distance=mean([turn.distance for turn in tried]),
                )
            )
    return found


def turning_distances(turns: Sequence[VoteAttack]) -> list[TurningDistance]:
    """One for each noise level."""
    found = []
    for sigma in sorted({turn.key.sigma for turn in turns}):
        own = [turn for turn in turns if turn.key.sigma == sigma]
        turned = [turn for turn in own if turn.turned]
        found.append(
            TurningDistance(
                sigma=sigma,
                attacked=len({turn.key.item for turn in own}),
                turned=len(turned),
                distance=median(turn.distance for turn in turned) if turned else None,
                multiple=median(turn.distance / turn.radius for turn in turned) if turned else None,
            )
        )
    return found


def _share(values: Sequence[bool]) -> Estimate:
    return proportion(sum(values), len(values))
