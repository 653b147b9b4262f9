"""Reads a streamed chat completion, with the votes that are counted on the way, into one completion."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

_VOTES = re.compile(r": (\d+) of (\d+) votes")


async def read_answer(lines: AsyncIterator[str], progress: Callable[[int, int], None]) -> tuple[int, dict[str, Any]]:
    """Puts an answer together.

    Args:
        lines: Of the stream.
        progress: Called with the votes so far, and with the most that there will be.

    Returns:
        200 and the completion, with ``robustness``; or the status that fits an error, and its body.
    """
    answer: dict[str, Any] = {"object": "chat.completion"}
    content: str | None = None
    reason = None
    async for line in lines:
        if votes := _VOTES.fullmatch(line):
            progress(int(votes[1]), int(votes[2]))
        if line == "data: [DONE]":
            message = {"role": "assistant", "content": content}
            return 200, {**answer, "choices": [{"index": 0, "message": message, "finish_reason": reason}]}
        if not line.startswith("data: "):
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            return 500, chunk
        for choice in chunk.get("choices", []):
            if (text := choice["delta"].get("content")) is not None:
                content = (content or "") + text
            reason = choice.get("finish_reason") or reason
        answer |= {name: value for name, value in chunk.items() if name not in ("object", "choices")}
    return 502, {"error": {"message": "the gateway broke off its answer; try again"}}
