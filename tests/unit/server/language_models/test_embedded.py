"""The embedded language model: who gets a place, and in which order answers are made."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from fs_runtime.embedded import EmbeddedModel
from server.errors import ApiError
from server.language_models.base import ChatRequest
from server.language_models.embedded import EmbeddedLanguageModel
from server.settings.gateway import Settings

TOKENS = 40


@pytest.fixture(scope="module")
def model(tiny_llava: Path) -> EmbeddedModel:
    return EmbeddedModel(str(tiny_llava))


@pytest_asyncio.fixture
async def served(tiny_llava: Path, model: EmbeddedModel) -> AsyncIterator[EmbeddedLanguageModel]:
    """One answer may be under way and two may wait."""
    served = EmbeddedLanguageModel(Settings(model=str(tiny_llava), max_waiting=2), model, "tiny")
    yield served
    await served.close()


def ask(text: str = "Describe it.", tokens: int = TOKENS, **options: Any) -> ChatRequest:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "temperature": 0, **options}
    return ChatRequest(body, [], "req")


async def outcome(answer: Awaitable[Any]) -> str:
    try:
        await answer
    except ApiError as error:
        return error.code
    return "answered"


async def read(chunks: AsyncIterator[dict[str, Any]]) -> None:
    async for _ in chunks:
        pass


async def has_room(served: EmbeddedLanguageModel) -> None:
    """Returns once a place is free."""
    async with asyncio.timeout(60):
        while await outcome(served.admit()) == "overloaded":  # noqa: ASYNC110 (nothing says when)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_burst_gets_as_many_places_as_there_are(served: EmbeddedLanguageModel, streamed: bool) -> None:
    burst = [read(served.stream(ask())) if streamed else served.complete(ask()) for _ in range(8)]
    outcomes = await asyncio.gather(*map(outcome, burst))
    assert outcomes == ["answered"] * 3 + ["overloaded"] * 5  # first come, first served
    await served.admit()


async def test_answers_are_made_one_after_the_other(served: EmbeddedLanguageModel) -> None:
    seen: list[int] = []

    async def note(number: int) -> None:
        async for _ in served.stream(ask(f"Question {number}?")):
            seen.append(number)  # noqa: PERF401 (when each came is what is asked)

    await asyncio.gather(*(note(number) for number in range(3)))
    assert len(seen) > 9
    assert seen == sorted(seen)


async def test_answers_in_a_burst_are_those_that_are_given_alone(served: EmbeddedLanguageModel) -> None:
    questions = ["What?", "Where is it now?", "Why?"]
    alone = [await served.complete(ask(question)) for question in questions]
    together = await asyncio.gather(*(served.complete(ask(question)) for question in questions))
    for one, other in zip(alone, together, strict=True):
        assert (one["choices"], one["usage"]) == (other["choices"], other["usage"])


async def test_who_does_not_read_holds_up_nobody(served: EmbeddedLanguageModel) -> None:
    unread = served.stream(ask())
    await anext(unread)
    async with asyncio.timeout(60):
        assert (await served.complete(ask()))["usage"]["completion_tokens"] == TOKENS
    await read(unread)


async def test_who_leaves_makes_room(served: EmbeddedLanguageModel) -> None:
    under_way = served.stream(ask(tokens=100_000))
    await anext(under_way)
    waiting = [asyncio.create_task(served.complete(ask(tokens=100_000))) for _ in range(2)]
    await asyncio.sleep(0)
    assert await outcome(served.complete(ask())) == "overloaded"
    waiting[0].cancel()
    await has_room(served)
    await under_way.aclose()
    waiting[1].cancel()
    await has_room(served)
    assert await outcome(served.complete(ask())) == "answered"


async def test_a_request_that_cannot_be_answered_gives_its_place_back(served: EmbeddedLanguageModel) -> None:
    for _ in range(4):
        assert await outcome(served.complete(ask("word " * 20_000))) == "context_length_exceeded"
        assert await outcome(read(served.stream(ask(tokens=0)))) == "invalid_value"
    assert await outcome(served.complete(ask())) == "answered"


async def test_closing_ends_answers_under_way_and_waiting(served: EmbeddedLanguageModel) -> None:
    answers = [asyncio.create_task(outcome(served.complete(ask(tokens=100_000)))) for _ in range(3)]
    await asyncio.sleep(0.05)
    await served.close()
    assert await asyncio.gather(*answers) == ["shutting_down"] * 3
    assert await outcome(served.complete(ask())) == "shutting_down"


async def test_of_many_unknown_fields_the_first_is_reported(served: EmbeddedLanguageModel) -> None:
    with pytest.raises(ApiError) as caught:
        await served.complete(ask(**{f"x{index}": 1 for index in range(1000)}))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unknown_parameter", "x0")
    assert "further" not in caught.value.message
