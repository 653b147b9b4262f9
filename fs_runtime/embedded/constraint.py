"""Answers of a given form: which tokens may come next, by llguidance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Self

import llguidance
import llguidance.hf
import numpy as np
import torch
from llguidance import numpy as masks  # its module for torch imports a compiler
from torch import Tensor


class FormError(ValueError):
    """A form that answers cannot be held to; the message says why."""


class Form:
    """A form of answers: some texts, JSON, or JSON of a schema. The grammar is checked when a tokenizer reads it."""

    def __init__(self, grammar: str) -> None:
        self.grammar = grammar

    @classmethod
    def of_choices(cls, choices: Sequence[str]) -> Self:
        """One of some texts. Where one is the beginning of another, the answer may end there, or go on."""
        options = " | ".join(json.dumps(choice, ensure_ascii=True) for choice in choices)
        return cls(llguidance.LLMatcher.grammar_from_lark(f"start: {options}"))

    @classmethod
    def of_json(cls, schema: dict[str, Any] | None = None) -> Self:
        """A JSON object, or JSON of a schema.

        Raises:
            FormError: The schema is none, or uses what cannot be enforced.
        """
        wanted = {"type": "object"} if schema is None else schema
        compact: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        try:
            return cls(llguidance.LLMatcher.grammar_from_json_schema(wanted, defaults=compact))
        except (ValueError, TypeError) as error:
            raise FormError(f"the JSON schema cannot be enforced: {error}") from None


class FormTokens:
    """A tokenizer as grammars read it; making it takes about a second for large vocabularies.

    Args:
        tokenizer: Of transformers, of the fast kind.
        vocabulary: Size of the model's output.
        ends: Tokens that end an answer.

    Raises:
        FormError: Its tokens do not say which bytes they stand for.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> None:
        try:
            self._tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(ends))
        except ValueError as error:
            raise FormError(f"this model's tokenizer can hold answers to no form: {error}") from None

    def check(self, form: Form) -> None:
        """Refuses a form that is none.

        Raises:
            FormError: The grammar is wrong or too large; the message says why.
        """
        self.follow(form)

    def follow(self, form: Form) -> FormState:
        """The form before the first token of an answer.

        Raises:
            FormError: As :meth:`check`.
        """
        matcher = llguidance.LLMatcher(self._tokens, form.grammar, log_level=0)
        if matcher.is_error():
            raise FormError(f"answers cannot be held to this form: {matcher.get_error()}")
        return FormState(matcher, int(self._tokens.vocab_size))


class FormState:
    """How far one answer is within its form."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._mask = masks.allocate_token_bitmask(1, vocabulary)

    def apply(self, logits: Tensor) -> Tensor:
        """The logits ``(V,)`` with tokens that cannot come next at -inf."""
        masks.fill_next_token_bitmask(self._matcher, self._mask)
        allowed = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")[: len(logits)].astype(bool)
        return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)

    def add(self, token: int) -> None:
        """Goes on with a token."""
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """Whether the answer has its form and cannot go on."""
        return bool(self._matcher.is_stopped())
