"""Prints a certified answer: what the votes say, which change cannot turn them, and what would certify more."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from fs_runtime.cli.change_in_words import change_in_words
from fs_runtime.rounding import at_least, percent

_REASONS = {
    "split": "the first copies chose no answer. A question with a short answer, --choices or --pattern helps, or a "
    "smaller --sigma",
    "agreement": "the votes agree too little for it. A smaller --radius, another --sigma, --choices or --pattern helps",
    "samples": "the votes agree enough, but are too few. More --samples do",
    "time": "the votes ended for want of time. Fewer --samples, or a smaller --radius, takes less",
}


def print_certified_answer(reply: dict[str, Any], pixels: int, console: Console) -> None:
    """Prints an answer that was voted on.

    Args:
        reply: The completion, with ``robustness``.
        pixels: Of the picture as sent.
        console: Gets the text.
    """
    answer = reply["robustness"]["answer"]
    (vote,) = answer["values"]
    text = reply["choices"][0]["message"]["content"]
    console.print(text if text else "(no answer)", markup=False)
    if answer["function"] == "pattern" and vote["value"] is not None:
        console.print(f"What counts of it: {vote['value']}", markup=False)
    if vote["certified"]:
        console.print(f"[dim]{_statement(answer, pixels)}[/dim]")
    if not answer["returned"]:
        console.print("[dim]The text above is not one that was voted for.[/dim]")
    if not vote["satisfied"]:
        asked = f"{answer['asked_radius']['model']:g}"
        console.print(
            f"[dim]{_agreement(answer)} Not certified at radius {asked}: {_REASONS[vote['shortfall']]}.[/dim]"
        )


def _agreement(answer: dict[str, Any]) -> str:
    agreement = answer["values"][0]["agreement"]
    if agreement is None:
        return f"{answer['samples']} noisy copies were asked about."
    return f"{answer['samples']} noisy copies were asked about; {at_least(100 * agreement, 1)}% of the votes agree."


def _statement(answer: dict[str, Any], pixels: int) -> str:
    radius, counted = answer["radius"], "answer" if answer["function"] != "pattern" else "match"
    agreement = f"{_agreement(answer)} " if answer["satisfied"] else ""
    return (
        f"Certified: {agreement}With {percent(answer['confidence'])} confidence, at every picture within an ℓ2 "
        f"distance of {at_least(radius['model'])} of this one as the model reads it, or "
        f"{at_least(radius['client'])} as sent (pixels in [0, 1]), the {counted} that is most frequent under noise is "
        f"this one (σ = {answer['sigma']:g}). The latter is, for example, {change_in_words(radius['client'], pixels)}."
    )
