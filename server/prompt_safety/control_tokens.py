"""Spellings of the model's own tokens in the text of a request."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from server.errors import invalid, short_name
from server.prompt_safety.folding import MAX_MARKS, TooManyMarksError, characters_folding_to, fold

# Never part of the prompt; `stop` and `bad_words` must match the answer as it is.
_NOT_PROMPT = frozenset({"model", "stop", "bad_words", "logit_bias", "user", "metadata"})
# vLLM's own stand-ins for media, in front of its chat template.
_VLLM_PLACEHOLDERS = ("<##IMAGE##>", "<##VIDEO##>", "<##AUDIO##>", "<##PROMPT_EMBEDS##>", "<prompt_embeds>")


class ControlTokens:
    """Makes the model's own tokens harmless in text, where they would be taken for further images or turns.

    A space goes behind the first character. Spellings that a tokenizer's normaliser would turn into a token
    (compatibility characters, invisible ones in between) are found too.

    Args:
        tokens: Spellings of the tokens.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = tuple(
            dict.fromkeys(
                spelling
                for token in (*tokens, *_VLLM_PLACEHOLDERS)
                for spelling in (token, "".join(fold(token)))
                if len(spelling) > 1
            )
        )
        self._openings = characters_folding_to(token[0] for token in self._tokens)

    def neutralise_body(self, body: dict[str, Any], max_characters: int) -> None:
        """Goes through all text of a request that can become part of the prompt, in place.

        Args:
            body: The request.
            max_characters: That its text may have, each ligature or the like counted as what it stands for.

        Raises:
            ApiError: 400: there is more text than that, too many combining marks follow one another, or text parts
                spell a token only together.
        """
        room = _Room(max_characters)
        for name, value in body.items():
            if name not in _NOT_PROMPT:
                body[name] = self._walk(value, name, short_name(name), room)
        joined = "".join(text.strip() for message in body["messages"] for text in _texts(message))
        if self._openings.search(joined) and self._found_in(_folded(joined, "messages")):
            raise invalid(
                "messages: texts that stand next to each other spell one of the model's control tokens; "
                "put them into one text",
                "messages",
                "split_control_token",
            )

    def _defuse(self, text: str, path: str, room: _Room) -> str:
        room.take(len(text), path)
        if not self._openings.search(text):
            return text
        text = self._split(text)
        folded = _folded(text, path, room)
        return self._split(folded) if self._found_in(folded) else text

    def _split(self, text: str) -> str:
        for token in self._tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _found_in(self, text: str) -> bool:
        return any(token in text for token in self._tokens)

    def _walk(self, value: Any, name: str, path: str, room: _Room) -> Any:
        if isinstance(value, str):
            return self._arguments(value, path, room) if name == "arguments" else self._defuse(value, path, room)
        if isinstance(value, list):
            return [self._walk(item, name, f"{path}.{index}", room) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {
                self._defuse(key, path, room): self._walk(item, key, f"{path}.{short_name(key)}", room)
                for key, item in value.items()
            }
        return value

    def _arguments(self, text: str, path: str, room: _Room) -> str:
        """Arguments of a tool call are JSON in a text: vLLM parses it, so that ``\\u003c`` becomes ``<``."""
        room.check(len(text), path)
        try:
            parsed = json.loads(text)
            harmless = self._walk(parsed, "", path, room)
        except (ValueError, RecursionError):
            return self._defuse(text, path, room)  # vLLM drops what it cannot parse
        return text if harmless == parsed else json.dumps(harmless, ensure_ascii=False)


@dataclass(slots=True)
class _Room:
    """Characters that a request may still have."""

    most: int
    taken: int = 0

    def take(self, count: int, path: str) -> None:
        self.check(count, path)
        self.taken += count

    def check(self, count: int, path: str) -> None:
        if self.taken + count > self.most:
            raise invalid(
                f"{path}: up to here the request has more than {self.most} characters of text, ligatures and the like "
                "counted as what they stand for; send less text",
                path,
                "text_too_long",
            )


def _folded(text: str, path: str, room: _Room | None = None) -> str:
    """The text in the form in which tokens are looked for; what it has grown by takes room."""
    parts, counted = [], len(text)
    try:
        for part in fold(text):
            parts.append(part)
            counted -= len(part)
            if room is not None and counted < 0:
                room.take(-counted, path)
                counted = 0
    except TooManyMarksError:
        raise invalid(
            f"{path}: more than {MAX_MARKS} combining marks follow one another; leave some of them out",
            path,
            "too_many_marks",
        ) from None
    return "".join(parts)


def _texts(message: dict[str, Any]) -> Iterable[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from (part[key] for key in ("text", "refusal", "thinking") if isinstance(part.get(key), str))
