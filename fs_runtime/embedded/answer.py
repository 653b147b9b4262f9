"""An answer as it is made: how its tokens are drawn, and how their text leaves in pieces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

FinishReason = Literal["stop", "length"]
# Below it the likeliest token is taken, as in vLLM (its `_SAMPLING_EPS`): of two tokens whose logits differ by 1e-3 the
# second has a probability of e^-100 there, and quotients of logits that leave the range of float32 are no numbers.
MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class Generation:
    """How to draw the answer.

    Attributes:
        max_new_tokens: Most tokens of the answer.
        temperature: Below :data:`MIN_TEMPERATURE` the likeliest token is taken each time.
        top_p: Smallest set of tokens with this probability is drawn from.
        stop: Texts that end the answer; they are not part of it.
        seed: Of the draws, from -2^63 to 2^64 - 1; None takes a fresh one.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer.

    Attributes:
        text: New text, perhaps empty.
        tokens: Tokens generated so far.
        finish_reason: Set on the last piece.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


class StopText:
    """Turns the growing decoded text into pieces, and holds back what may become a stop text or half a character."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = [text for text in stop if text]
        self._text = ""
        self._sent = 0
        self.stopped = False

    def feed(self, text: str) -> str:
        """Takes all text so far and returns what may leave; sets ``stopped`` at a stop text."""
        self._text = text
        ends = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if ends:
            self._text, self.stopped = text[: min(ends)], True
            return ""
        safe = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        safe = min(safe, len(text.rstrip("\ufffd")))  # bytes of a character that is not complete
        return self._take(safe)

    def rest(self) -> str:
        """What was held back."""
        return self._take(len(self._text))

    def _take(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def draw(logits: Tensor, options: Generation, generator: torch.Generator) -> int:
    """One token: the likeliest, or drawn from the nucleus (Holtzman et al. 2020)."""
    if options.temperature < MIN_TEMPERATURE:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / options.temperature, dim=-1)
    if options.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= options.top_p  # the first token always stays
        probabilities[order[outside]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))
