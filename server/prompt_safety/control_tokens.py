"""Neutralises text that spells the model's control tokens, such as image or turn tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from server.errors import invalid, short_name
from server.prompt_safety.folding import MAX_MARKS, TooManyMarksError, characters_folding_to, fold

# Never part of the prompt; `stop` and `bad_words` must match the answer as it is.
_NOT_PROMPT = frozenset({"model", "stop", "bad_words", "logit_bias", "user", "metadata"})
# Placeholders for media that vLLM inserts before it applies the chat template.
_VLLM_PLACEHOLDERS = ("<##IMAGE##>", "<##VIDEO##>", "<##AUDIO##>", "<##PROMPT_EMBEDS##>", "<prompt_embeds>")


class ControlTokens:
    """Neutralises control tokens in text, which the model would take for further images or turns.

    It inserts a space after the first character. It also finds spellings that a tokenizer's normaliser would turn into
    a token, with compatibility characters or invisible ones.

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
        """Neutralises all text of a request that can become part of the prompt, in place.

        Args:
            body: The request.
            max_characters: Most characters of text; a ligature counts as the characters that it stands for.

        Raises:
            ApiError: 400: there is more text, too many combining marks follow one another, or adjacent text parts form
                a token together.
        """
        budget = _TextBudget(max_characters)
        for name, value in body.items():
            if name not in _NOT_PROMPT:
                body[name] = self._walk(value, name, short_name(name), budget)
        joined = "".join(text.strip() for message in body["messages"] for text in _texts(message))
        if self._openings.search(joined) and self._found_in(_folded(joined, "messages")):
            raise invalid(
                "messages: texts that stand next to each other spell one of the model's control tokens; "
                "put them into one text",
                "messages",
                "split_control_token",
            )

    def _neutralise(self, text: str, path: str, budget: _TextBudget) -> str:
        budget.spend(len(text), path)
        if not self._openings.search(text):
            return text
        text = self._split(text)
        folded = _folded(text, path, budget)
        return self._split(folded) if self._found_in(folded) else text

    def _split(self, text: str) -> str:
        for token in self._tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _found_in(self, text: str) -> bool:
        return any(token in text for token in self._tokens)

    def _walk(self, value: Any, name: str, path: str, budget: _TextBudget) -> Any:
        if isinstance(value, str):
            return (
                self._arguments(value, path, budget) if name == "arguments" else self._neutralise(value, path, budget)
            )
        if isinstance(value, list):
            return [self._walk(item, name, f"{path}.{index}", budget) for index, item in enumerate(value)]
        if isinstance(value, dict):
            return {
                self._neutralise(key, path, budget): self._walk(item, key, f"{path}.{short_name(key)}", budget)
                for key, item in value.items()
            }
        return value

    def _arguments(self, text: str, path: str, budget: _TextBudget) -> str:
        """Neutralises the JSON string of a tool call's arguments; vLLM parses it, so ``\\u003c`` would become ``<``."""
        budget.check(len(text), path)
        try:
            parsed = json.loads(text)
            harmless = self._walk(parsed, "", path, budget)
        except (ValueError, RecursionError):
            return self._neutralise(text, path, budget)  # vLLM drops arguments that it cannot parse
        return text if harmless == parsed else json.dumps(harmless, ensure_ascii=False)


@dataclass(slots=True)
class _TextBudget:
    """Counts characters against the limit of a request."""

    max_characters: int
    used: int = 0

    def spend(self, count: int, path: str) -> None:
        self.check(count, path)
        self.used += count

    def check(self, count: int, path: str) -> None:
        if self.used + count > self.max_characters:
            raise invalid(
                f"{path}: up to here the request has more than {self.max_characters} characters of text, ligatures "
                "and the like counted as what they stand for; send less text",
                path,
                "text_too_long",
            )


def _folded(text: str, path: str, budget: _TextBudget | None = None) -> str:
    """Folds the text for the search of tokens. Characters that folding adds count against the limit."""
    parts, counted = [], len(text)
    try:
        for part in fold(text):
            parts.append(part)
            counted -= len(part)
            if budget is not None and counted < 0:
                budget.spend(-counted, path)
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
