"""Certified answers as Markdown and JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fs_runtime.certificate import most_vote_radius
from fs_runtime.certificate.vote_bound import PILOT
from fs_runtime.evaluation.answers.outcomes import Outcome
from fs_runtime.evaluation.answers.plan import ADAPTIVE_RATIO, CERTIFIED_RATIOS, COSINE, VotePlan
from fs_runtime.evaluation.answers.records import VoteAttack
from fs_runtime.evaluation.answers.summary import Outcomes, VoteSummary, turn_summaries, turning_distances
from fs_runtime.evaluation.intervals import Estimate
from fs_runtime.rounding import at_least
from fs_runtime.system.files import write_file

_TITLES = {"text": "Whole answers", "choices": "Answers held to choices"}
_REASONS = ("split", "agreement", "samples")


def write_report(
    folder: Path, outcomes: Outcomes, turns: Sequence[VoteAttack], settings: Mapping[str, Any]
) -> list[Path]:
    """Writes ``answers.md`` and ``answers.json``.

    Args:
        folder: Of the results.
        outcomes: Of the votes.
        turns: Finished attacks.
        settings: Of the measurement.

    Returns:
        The files written.

    Raises:
        TrainingError: The disk is full or cannot be written.
    """
    summaries = outcomes.summaries()
    texts = {
        "answers.md": markdown(outcomes.plan, summaries, turns),
        "answers.json": as_json(outcomes, summaries, turns, settings),
    }
    for name, text in texts.items():
        write_file(folder / name, text.encode())
    return [folder / name for name in texts]


def markdown(plan: VotePlan, summaries: Sequence[VoteSummary], turns: Sequence[VoteAttack]) -> str:
    """A table of certified accuracy for each reading, one of abstentions and cost, and one of attacks."""
    if not summaries:
        return "Nothing is measured yet.\n"
    lines = [
        "# Certified answers",
        "",
        f"Confidence {plan.confidence:g} for each vote by itself, seed {plan.seed}. n counts the pilot of {PILOT} "
        "copies, which choose the answer and have no vote. Radii are ℓ2, in pixels of [0, 1] of the picture that the "
        "encoder reads. In brackets 95% intervals over the questions: Wilson's for shares, Student's for means.",
        "",
        "- *Without noise*: accuracy of the plain model. *Smoothed*: of the answer to the mean features of the copies. "
        "*Returned*: of the answer that a request for a certified one gets: the vote's winner, or what is most "
        "frequent where the pilot chose none.",
        "- *Right and certified at r*: no change below r turns the answer that is most frequent under noise, and it is "
        "the right one. This is the certified accuracy of Cohen et al. (ICML 2019). *Limit*: the radius at which every "
        "such curve ends, whatever the method: σ Φ⁻¹(α^(1/n)) for n votes, here those after the pilot.",
        f"- *Cosine {COSINE:g} at r*: the smoothed answer is right, and the **features** are certified to keep a "
        f"cosine similarity of {COSINE:g}, from the same copies. **Another kind of statement**: it says nothing of the "
        "answer at other pictures.",
    ]
    for reading in dict.fromkeys(one.reading for one in summaries):
        own = [one for one in summaries if one.reading == reading]
        lines += ["", f"## {_TITLES[reading]}", "", *_accuracy_lines(own, plan), "", *_cost_lines(own)]
    if turns:
        lines += ["", "## Attacks on the vote", "", *_turn_lines(turns, plan)]
    return "\n".join(lines) + "\n"


def as_json(
    outcomes: Outcomes, summaries: Sequence[VoteSummary], turns: Sequence[VoteAttack], settings: Mapping[str, Any]
) -> str:
    """Settings, estimates, and the curves: for each the radii of the items that are right, largest first."""
    curves = [
        {
            "reading": one.reading,
            "sigma": one.sigma,
            "samples": one.samples,
            "items": one.items,
            "limit": most_vote_radius(one.samples - PILOT, outcomes.plan.confidence, one.sigma),
            "votes": right_radii(outcomes.of(one.reading, one.sigma, one.samples)),
            "cosine": right_cosine_radii(outcomes.of(one.reading, one.sigma, one.samples)),
        }
        for one in summaries
    ]
    found = {
        "settings": settings,
        "plan": dataclasses.asdict(outcomes.plan),
        "certified_ratios": CERTIFIED_RATIOS,
        "cosine": COSINE,
        "summaries": [dataclasses.asdict(one) for one in summaries],
        "curves": curves,
        "attacks": [dataclasses.asdict(one) for one in turn_summaries(turns)],
        "turning_distances": [dataclasses.asdict(one) for one in turning_distances(turns)],
    }
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def right_radii(outcomes: Sequence[Outcome]) -> list[float]:
    """Radii that the votes on items with the right winner certify, largest first."""
    return sorted((one.radius for one in outcomes if one.certified(0.0)), reverse=True)


def right_cosine_radii(outcomes: Sequence[Outcome]) -> list[float]:
    """Radii at which the features of items with the right smoothed answer are certified, largest first."""
    return sorted((one.cosine_radius for one in outcomes if one.certified_cosine(0.0)), reverse=True)


def _accuracy_lines(summaries: Sequence[VoteSummary], plan: VotePlan) -> list[str]:
    votes = [f"right and certified at {ratio:g} σ" for ratio in CERTIFIED_RATIOS]
    cosine = [f"cosine {COSINE:g} at {ratio:g} σ" for ratio in CERTIFIED_RATIOS]
    head = [
        "σ",
        "n",
        "questions",
        "without noise",
        "smoothed",
        "returned",
        *votes,
        "limit",
        "certified, wrong",
        *cosine,
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---:|" * len(head)]
    for one in summaries:
        limit = most_vote_radius(one.samples - PILOT, plan.confidence, one.sigma)
        cells = [
            f"{one.sigma:g}",
            str(one.samples),
            str(one.items),
            *(_share(estimate) for estimate in (one.clean, one.smoothed, one.returned, *one.certified)),
            f"{at_least(limit, 3)} ({limit / one.sigma:.2f} σ)",
            *(_share(estimate) for estimate in (one.certified_wrong, *one.cosine)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cost_lines(summaries: Sequence[VoteSummary]) -> list[str]:
    lines = [
        "Questions without any certified radius, by reason: *split*, the pilot chose no answer; *agreement*, the "
        "copies agree too little for any number of them; *samples*, more copies would do. *Adaptive* sampling ends as "
        f"soon as the radius {ADAPTIVE_RATIO:g} σ is certified or out of reach. *Times* are medians for n copies of a "
        "question: the smoothing pass by itself, and the whole answers to its copies; *adaptive* is what both take for "
        "the median of its copies where all agree, over the smoothing pass of all n.",
        "",
        "| σ | n | split | agreement | samples | agreement of the copies | adaptive: copies, mean | median where all "
        f"agree | certified at {ADAPTIVE_RATIO:g} σ | smoothing, s | answers, s | together / smoothing "
        "| adaptive / smoothing |",
        "|" + "---:|" * 13,
    ]
    for one in summaries:
        ratio = (one.smoothing + one.answering) / one.smoothing
        agreement = "–" if one.agreement is None else _share(one.agreement)
        cells = [
            f"{one.sigma:g}",
            str(one.samples),
            *(str(one.abstentions.get(reason, 0)) for reason in _REASONS),
            agreement,
            _number(one.adaptive_copies, 1),
            "–" if one.adaptive_median is None else f"{one.adaptive_median:g}",
            _share(one.adaptive_reached),
            f"{one.smoothing:.2f}",
            f"{one.answering:.2f}",
            f"{ratio:.2f}",
            "–" if one.adaptive_median is None else f"{ratio * one.adaptive_median / one.samples:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _turn_lines(turns: Sequence[VoteAttack], plan: VotePlan) -> list[str]:
    lines = [
        "On the first questions whose whole answers are certified by all copies, right or not; R is each one's "
        "certified radius. APGD on the mean probability of the winning answer over noisy copies, and on its margin, "
        "through purifier, noise, encoder, mapper and language model, with fresh noise at every step: "
        f"{plan.steps} steps, {plan.draws} copies behind each gradient, {plan.restarts} random starts of each, within "
        f"an ℓ2 ball and the box of pixel values. *Turned*: of at most {plan.judging} fresh copies of the attacked "
        "picture fewer than half vote for the winner, by the upper bound of the share at 0.999. A question that one "
        "size turned is not attacked with larger ones; *turned so far* counts it there, too. *Share*: of the fresh "
        "copies that were asked about, which are fewer where the rest could not change the verdict.",
        "",
        "| σ | size | questions | turned so far | share for the winner | ℓ2 distance |",
        "|" + "---:|" * 6,
    ]
    for one in turn_summaries(turns):
        cells = [
            f"{one.sigma:g}",
            f"{one.ratio:g} R",
            str(one.attacked),
            _share(one.turned),
            _share(one.share),
            _number(one.distance, 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for way in turning_distances(turns):
        text = f"σ = {way.sigma:g}: {way.turned} of {way.attacked} votes were turned by some size"
        if way.distance is not None:
            text += f", at a median ℓ2 distance of {way.distance:.3f}, {way.multiple:.2f} times the certified radius"
        lines += ["", f"{text}."]
    return lines


def _share(estimate: Estimate) -> str:
    """In percent, with its interval within what a share can be."""
    low, high = max(0.0, estimate.low), min(1.0, estimate.high)
    return f"{100 * estimate.value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def _number(estimate: Estimate, digits: int) -> str:
    return f"{estimate.value:.{digits}f} ({max(0.0, estimate.low):.{digits}f} to {estimate.high:.{digits}f})"
