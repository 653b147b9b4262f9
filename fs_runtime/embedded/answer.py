"""Generation of an answer: sampling options, sampling of tokens, and streaming of the text in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fs_runtime.embedded.constraint import Form

FinishReason = Literal["stop", "length"]
# Below it decoding is greedy, as in vLLM (its `_SAMPLING_EPS`). At this temperature a token whose logit is 1e-3 below
# the largest has a probability of e^-100, and logits divided by much less would overflow float32.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class Generation:
    """Options for the generation of an answer.

    Attributes:
        max_new_tokens: Most tokens of the answer.
        temperature: Below :data:`MIN_TEMPERATURE` decoding is greedy.
        top_p: Tokens are drawn from the smallest set with this probability.
        stop: Texts that end the answer; they are not part of it.
        seed: Of the sampling, from -2^63 to 2^64 - 1; None for a fresh one.
        form: That the answer must have; None for any.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    form: Form | None = None

    @property
    def greedy(self) -> bool:
        """Whether each token is the likeliest."""
        return self.temperature < MIN_TEMPERATURE


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a streamed answer.

    Attributes:
        text: New text, perhaps empty.
        tokens: Tokens generated so far.
        finish_reason: Set on the last piece.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


class StopTextFilter:
    """Splits the growing text into pieces, and holds back what may be the start of a stop text or half a character."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = [text for text in stop if text]
        self._text = ""
        self._sent = 0
        self.stopped = False

    def feed(self, text: str) -> str:
        """Takes all text so far and returns the new text that may be sent; sets ``stopped`` at a stop text."""
        self._text = text
        ends = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if ends:
            self._text, self.stopped = text[: min(ends)], True
            return ""
        safe = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        safe = min(safe, len(text.rstrip("\ufffd")))  # bytes of a character that is not complete
        return self._take(safe)

    def flush(self) -> str:
        """The text that was held back."""
        return self._take(len(self._text))

    def _take(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of ``text`` that is a prefix of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def sample_token(logits: Tensor, options: Generation, generator: torch.Generator) -> int:
    """One token: the likeliest, or one drawn by nucleus sampling (Holtzman et al. 2020)."""
    if options.greedy:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / options.temperature, dim=-1)
    if options.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= options.top_p  # the first token always stays
        probabilities[order[outside]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))
