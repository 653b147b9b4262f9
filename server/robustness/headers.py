"""The certificates of a request in headers, known before the first token."""

from __future__ import annotations

from fs_runtime.rounding import at_least
from server.robustness.answer import Robustness
from server.robustness.answer_entry import AnswerEntry


def robustness_headers(robustness: Robustness) -> dict[str, str]:
    """What is certified for the worst image and of the answer, the lowest certified fidelity, and what followed."""
    if not robustness.images:
        return {"x-robustness-certified": "none"}
    worst = min(robustness.images, key=lambda image: image.smoothed.best or 0.0)
    answer = robustness.answer
    fidelities = [image.fidelity.lower or 0.0 for image in robustness.images if image.fidelity]
    return {
        "x-robustness-certified": str(robustness.certified).lower(),
        "x-robustness-similarity": at_least(worst.smoothed.best or 0.0, 6),
        "x-robustness-radius": str(worst.radius.model),
        "x-robustness-sigma": str(worst.sigma),
        "x-robustness-samples": str(worst.samples),
        "x-robustness-confidence": str(worst.confidence),
        **({"x-robustness-fidelity": at_least(min(fidelities), 6)} if fidelities else {}),
        **({} if answer is None else _answer_headers(answer)),
        **({"x-robustness-decision": robustness.decision} if robustness.decision else {}),
    }


def _answer_headers(answer: AnswerEntry) -> dict[str, str]:
    return {
        "x-robustness-answer-certified": str(answer.certified).lower(),
        "x-robustness-answer-radius": at_least(answer.radius.model, 6),
    }
