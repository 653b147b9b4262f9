"""A streamed answer, put together, with its votes on the way."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from server.cli.answer_stream import read_answer


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return "data: " + json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice], **more})


def read(*lines: str) -> tuple[int, dict[str, Any], list[tuple[int, int]]]:
    async def stream() -> AsyncIterator[str]:
        for line in lines:
            yield line

    seen: list[tuple[int, int]] = []
    status, answer = asyncio.run(read_answer(stream(), lambda votes, most: seen.append((votes, most))))
    return status, answer, seen


def test_votes_are_reported_and_chunks_put_together() -> None:
    status, answer, seen = read(
        ": 1 of 64 votes",
        "",
        ": 33 of 64 votes",
        chunk({"role": "assistant", "content": "It is "}, robustness={"answer": 1}),
        chunk({"content": "red."}),
        chunk({}, "stop"),
        'data: {"choices": [], "usage": {"total_tokens": 5}, "robustness": {"answer": 2}}',
        "data: [DONE]",
    )
    assert status == 200
    assert seen == [(1, 64), (33, 64)]
    message = {"role": "assistant", "content": "It is red."}
    assert answer["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    assert (answer["id"], answer["object"], answer["usage"]) == ("x", "chat.completion", {"total_tokens": 5})
    assert answer["robustness"] == {"answer": 2}


def test_an_answer_without_text() -> None:
    answer = read(chunk({"role": "assistant", "content": None}), chunk({}, "stop"), "data: [DONE]")[1]
    assert answer["choices"][0]["message"]["content"] is None


def test_an_error_on_the_way_and_a_stream_that_ends() -> None:
    status, answer, _ = read(": 1 of 8 votes", 'data: {"error": {"message": "lost"}}', "data: [DONE]")
    assert (status, answer["error"]["message"]) == (500, "lost")
    status, answer, _ = read(chunk({"content": "It"}))
    assert (status, "broke off" in answer["error"]["message"]) == (502, True)
