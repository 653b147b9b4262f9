"""What people read of a certified answer."""

import io
from typing import Any, get_args

import pytest
from rich.console import Console

from server.cli.certified_answer import print_certified_answer
from server.robustness.answer_entry import Shortfall


def printed(content: str | None = "It is red.", **changes: Any) -> str:
    value = {"value": "red", "certified": True, "satisfied": True, "agreement": 0.99999, "shortfall": None}
    value |= changes.pop("vote", {})
    answer = {
        "satisfied": value["satisfied"],
        "function": "text",
        "radius": {"model": 0.12345, "client": 0.3},
        "asked_radius": {"model": 0.125, "client": 0.3},
        "confidence": 0.999,
        "sigma": 0.25,
        "samples": 64,
        "returned": True,
        "values": [value],
        **changes,
    }
    file = io.StringIO()
    reply = {"choices": [{"message": {"content": content}}], "robustness": {"answer": answer}}
    print_certified_answer(reply, 384 * 384, Console(file=file, width=1000))
    return file.getvalue()


def test_numbers_are_rounded_to_the_safe_side() -> None:
    text = printed()
    assert "It is red.\nCertified: 64 noisy copies were asked about; 99.9% of the votes agree." in text
    assert "With 99.9% confidence, at every picture within an ℓ2 distance of 0.1234 of this one" in text
    assert "for example, 1/255 in each colour of 1,950 pixels, or 32/255 of 1." in text
    assert "Not certified" not in text


@pytest.mark.parametrize("reason", get_args(Shortfall))
def test_every_reason_has_its_words(reason: Shortfall) -> None:
    text = printed(vote={"certified": False, "satisfied": False, "shortfall": reason})
    assert "With 99.9% confidence" not in text
    assert "Not certified at radius 0.125: the " in text
    assert "--s" in text  # what would help


def test_a_pattern_and_an_answer_that_nobody_voted_for() -> None:
    text = printed("[bold]red[/bold]", function="pattern", returned=False)
    assert text.startswith("[bold]red[/bold]\nWhat counts of it: red\n")
    assert "the match that is most frequent" in text
    assert "not one that was voted for" in text
    split = {"value": None, "certified": False, "satisfied": False, "agreement": None, "shortfall": "split"}
    assert printed(None, vote=split, returned=False).startswith("(no answer)\n")
