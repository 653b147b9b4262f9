"""The vote on an answer: in the order of the copies, whatever the language model does."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np
import pytest

from fs_runtime.votes import Choices, Fields, Reading, WholeText
from server.errors import ApiError
from server.language_models.base import ChatRequest, CopyAnswer, CopySource
from server.models.voting import Vote
from server.observability.metrics import Metrics
from server.robustness.answer_entry import AnswerEntry
from server.robustness.answer_plan import AnswerPlan
from server.robustness.policy import AnswerRequirement
from server.settings.gateway import Settings

BROKEN = ApiError(502, "the language model failed", code="language_model_failed")


def completion(text: str, reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x",
        "choices": [{"index": 0, "message": message, "finish_reason": reason}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2},
    }


class Answers:
    """A language model that says of copy i what it is told to, all copies at once, each after its own time."""

    def __init__(self, say: Callable[[int], str | ApiError], seconds: Callable[[int], float] = lambda _: 0.0) -> None:
        self.say, self.seconds = say, seconds
        self.asked: list[int] = []

    async def answers(
        self, request: ChatRequest, copies: CopySource, choices: tuple[str, ...] | None
    ) -> AsyncGenerator[CopyAnswer | ApiError, None]:
        while batch := await copies.take(16):
            first = len(self.asked)
            self.asked += range(first, first + len(batch))
            tasks = [asyncio.create_task(self._answer(first + number)) for number in range(len(batch))]
            for task in tasks:
                yield await task

    async def _answer(self, number: int) -> CopyAnswer | ApiError:
        await asyncio.sleep(self.seconds(number))
        said = self.say(number)
        return said if isinstance(said, ApiError) else CopyAnswer(completion(said))


def voted(model: Answers, **options: Any) -> tuple[Vote, AnswerEntry]:
    """The vote over copies that a draughtsman hands in as they are wanted."""
    reading: Reading = options.pop("reading", WholeText())
    samples, timeout = options.pop("samples", 64), options.pop("timeout", 30.0)
    plan = AnswerPlan(
        reading,
        samples,
        options.pop("radius", 0.125),
        options.pop("space", "model"),
        options.pop("adaptive", False),
        options.pop("requirements", []),
        full_budget=options.pop("full_budget", True),
        binds=options.pop("binds", False),
    )

    async def run() -> tuple[Vote, AnswerEntry]:
        vote = Vote(
            plan,
            ChatRequest({}, [], "r"),
            "purpose",
            model,  # type: ignore[arg-type]
            Settings(answer_timeout=timeout),
            Metrics().models.of_model("m"),
        )
        (copies,) = vote.copies_for(1)
        draw = asyncio.create_task(_draw(copies, samples))
        try:
            await vote.run(0.25, 0.999, go_on=False)
        finally:
            draw.cancel()
        return vote, vote.entry([options.get("norm", 1.0)], 0.999, beside=3)

    return asyncio.run(run())


async def _draw(copies: Any, samples: int) -> None:
    """Does what an engine does."""
    import threading

    from fs_runtime.engine.copies import CopyBudget

    copies.attach(CopyBudget(10**9, threading.Condition()), 1.0)
    drawn = 0
    while drawn < samples and not copies.stopped:
        room = min(copies.room, samples - drawn)
        if room:
            copies.put([{"image_embeds": np.zeros((1, 4), np.float32)} for _ in range(room)])
            drawn += room
        await asyncio.sleep(0)
    copies.end()


def test_agreement_is_certified() -> None:
    vote, entry = voted(Answers(lambda _: "It is red."))
    assert vote.completion == completion("It is red.")
    assert entry.certified
    assert entry.satisfied
    assert entry.returned
    assert entry.text == "it is red"
    assert entry.samples == 64
    assert 0.125 < entry.radius.model < 0.375
    assert (entry.usage.prompt_tokens, entry.usage.completion_tokens) == (640, 128)
    assert entry.confidence_together == pytest.approx(1 - 4 * 0.001)  # the value, and three about the image


def test_votes_enter_in_the_order_of_the_copies() -> None:
    """The losing answer is slow: counted as they arrive, it would be missing from a vote that ends early."""

    def say(number: int) -> str:
        return "blue" if number % 4 == 3 and number > 8 else "red"

    quick = voted(Answers(say), adaptive=True)[1]
    slow = voted(Answers(say, lambda number: 0.05 if say(number) == "blue" else 0.0), adaptive=True)[1]
    assert slow == quick
    assert not slow.satisfied
    last = voted(Answers(lambda number: "red" if number < 20 else "blue", lambda number: 0.2 if number < 20 else 0.0))[
        1
    ]
    assert last.text == "red"  # the pilot is the first copies, not the first answers


def test_copies_that_fail_count_against_the_winner() -> None:
    failing = voted(Answers(lambda number: BROKEN if number in (20, 30) else "red"))[1]
    wrong = voted(Answers(lambda number: "blue" if number in (20, 30) else "red"))[1]
    assert failing.failed == 2
    assert failing.radius == wrong.radius
    assert failing.values[0].agreement == wrong.values[0].agreement


@pytest.mark.parametrize("broken", [lambda _: True, lambda number: number > 12, lambda number: number % 5 == 4])
def test_too_many_failures_are_the_language_models(broken: Callable[[int], bool]) -> None:
    model = Answers(lambda number: BROKEN if broken(number) else "red")
    with pytest.raises(ApiError) as raised:
        voted(model)
    assert raised.value is BROKEN


def test_a_language_model_that_always_fails_is_given_up_after_the_pilot() -> None:
    model = Answers(lambda _: BROKEN)
    with pytest.raises(ApiError):
        voted(model, samples=1000)
    assert len(model.asked) <= 16


def test_it_ends_where_the_radius_is_certified() -> None:
    model = Answers(lambda _: "red")
    entry = voted(model, adaptive=True, samples=512)[1]
    assert (entry.samples, len(model.asked), entry.satisfied) == (32, 32, True)
    everything = voted(Answers(lambda _: "red"), samples=128)[1]
    assert everything.samples == 128
    assert everything.radius.model > entry.radius.model


def test_it_ends_where_the_radius_is_out_of_reach() -> None:
    model = Answers(lambda number: "red" if number % 2 or number < 8 else "blue")
    entry = voted(model, adaptive=True, samples=4096)[1]
    assert not entry.certified
    assert entry.samples < 200
    assert entry.values[0].shortfall == "agreement"


def test_a_split_pilot_certifies_nothing_and_says_so() -> None:
    vote, entry = voted(Answers(lambda number: "red" if number % 2 else "blue"), adaptive=True)
    assert not entry.certified
    assert entry.values[0].shortfall == "split"
    assert entry.text is None
    assert not entry.returned
    assert entry.samples == 8  # nothing can be certified any more
    assert vote.completion is not None


def test_more_copies_would_do() -> None:
    requirement = AnswerRequirement("request", 0.4, "model", "reject", "flag")
    entry = voted(Answers(lambda _: "red"), radius=0.4, samples=32, requirements=[requirement])[1]
    assert entry.certified
    assert not entry.satisfied
    assert entry.values[0].shortfall == "samples"
    assert entry.verdicts == ("undecided",)
    assert entry.decision([requirement]) == "flag"


def test_who_asks_for_few_copies_is_not_undecided() -> None:
    requirement = AnswerRequirement("server", 0.4, "model", "reject", "flag")
    options = {"radius": 0.4, "samples": 32, "requirements": [requirement], "full_budget": False, "binds": True}
    entry = voted(Answers(lambda _: "red"), **options)[1]
    assert entry.values[0].shortfall == "samples"
    assert entry.verdicts == ("failed",)
    assert entry.decision([requirement]) == "reject"


def test_time_that_is_over_leaves_what_was_counted() -> None:
    entry = voted(Answers(lambda _: "red", lambda number: 0.0 if number < 48 else 60.0), timeout=1.0)[1]
    assert entry.samples == 48
    assert entry.satisfied  # what the votes so far certify holds
    short = voted(Answers(lambda _: "red", lambda number: 0.0 if number < 16 else 60.0), timeout=1.0)[1]
    assert short.values[0].shortfall == "time"
    requirement = AnswerRequirement("server", 0.125, "model", "reject", "flag")
    late = Answers(lambda _: "red", lambda number: 0.0 if number < 16 else 60.0)
    for binds, verdict in ((False, "undecided"), (True, "failed")):  # long answers are no way around what binds
        entry = voted(late, timeout=1.0, requirements=[requirement], binds=binds)[1]
        late.asked.clear()
        assert entry.verdicts == (verdict,)
    with pytest.raises(ApiError, match="no copy was answered") as raised:
        voted(Answers(lambda _: "red", lambda _: 60.0), timeout=0.2)
    assert raised.value.status == 504


def test_answers_that_were_cut_off_never_win() -> None:
    model = Answers(lambda _: "red")
    model._answer = lambda _: _cut_off()  # type: ignore[method-assign,assignment]
    vote, entry = voted(model)
    assert entry.values[0].votes[0].value is None
    assert entry.values[0].shortfall == "split"
    assert vote.completion is not None


async def _cut_off() -> CopyAnswer:
    return CopyAnswer(completion("It is re", "length"))


def test_the_answer_that_is_returned_carries_all_winners() -> None:
    def say(number: int) -> str:
        return f'{{"a": 1, "b": {number % 2 if number < 8 else 1}, "c": {number}}}'

    vote, entry = voted(Answers(say), reading=Fields(["/a", "/b"]))
    assert entry.text is None
    assert [value.name for value in entry.values] == ["/a", "/b"]
    assert entry.values[0].satisfied
    assert entry.values[1].shortfall == "split"
    assert not entry.returned

    def never_both(number: int) -> str:
        return f'{{"a": {number % 3 != 0:d}, "b": {number % 3 != 1:d}, "c": {number % 3 != 2:d}}}'

    vote, entry = voted(Answers(never_both), reading=Fields(["/a", "/b", "/c"]))
    assert [value.value for value in entry.values] == ["1", "1", "1"]
    assert not entry.returned
    assert vote.completion is not None
    assert vote.completion["choices"][0]["message"]["content"] is None


def test_choices_are_returned_as_they_were_given() -> None:
    entry = voted(Answers(lambda _: "yes."), reading=Choices(["Yes", "No"]))[1]
    assert entry.text == "Yes"


def test_the_radius_on_images_as_sent_is_that_of_the_largest_norm() -> None:
    entry = voted(Answers(lambda _: "red"), radius=0.1, space="client", norm=0.5)[1]
    assert entry.asked_radius.model == pytest.approx(0.05)
    assert entry.radius.client == pytest.approx(2 * entry.radius.model)


def test_most_frequent_values_and_the_others() -> None:
    entry = voted(Answers(lambda number: "red" if number < 30 else f"colour {number}"))[1]
    (value,) = entry.values
    assert value.votes[0].copies == 30
    assert len(value.votes) == 10
    assert sum(share.copies for share in value.votes) + value.other_votes == 64


def test_votes_and_failures_are_counted() -> None:
    vote = voted(Answers(lambda number: BROKEN if number in (20, 40) else "red"))[0]
    value = vote.metrics._table.registry.get_sample_value
    assert value("fs_votes_total", {"outcome": "answered", "model": "m"}) == 62
    assert value("fs_votes_total", {"outcome": "failed", "model": "m"}) == 2


def test_the_weakest_field_speaks_for_the_answer() -> None:
    def say(number: int) -> str:
        return json.dumps({"a": 1, "b": 2 if number % 3 else 3})

    entry = voted(Answers(say), reading=Fields(["/a", "/b"]))[1]
    first, second = entry.values
    assert (first.agreement, first.shortfall, first.satisfied) == (1.0, None, True)
    assert entry.agreement == second.agreement == 37 / 56
    assert entry.shortfall == second.shortfall == "agreement"
    assert entry.outcome == ("smaller_radius" if second.certified else "uncertified")
    assert voted(Answers(lambda _: "red"))[1].outcome == "certified"


def test_purposes_differ_by_position_image_and_question() -> None:
    async def names() -> list[str]:
        made = []
        for purpose, images, reading in (
            ("q", ["a", "a"], WholeText()),
            ("q", ["a", "b"], WholeText()),
            ("q", ["b", "a"], WholeText()),
            ("p", ["a", "a"], WholeText()),
            ("q", ["a", "a"], Choices(["x", "y"])),
        ):
            plan = AnswerPlan(reading, 8, 0.1, "model", False, [])
            vote = Vote(plan, None, purpose, None, None, None)  # type: ignore[arg-type]
            vote.copies_for(len(images))
            made += await asyncio.gather(*(vote.purpose_of(*pair) for pair in enumerate(images)))
        return made

    made = asyncio.run(names())
    assert len(set(made)) == len(made) == 10
    assert made == asyncio.run(names())
