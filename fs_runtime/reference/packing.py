"""Packs conversations into sequences of one length, as arrays that the training loop puts on the device.

An independent conversation has a shared prefix, the pictures, and then its turns one after another. Each turn
attends only to the prefix and itself, and its positions start at the end of the prefix, as if it were asked alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .conversations import IGNORED, IMAGE_SIZE, PATCH_CLASSES, PATCHES, Conversation, DrawnPicture
from .tokenizer import ASSISTANT, BEGIN, END, IMAGE, PAD, SYSTEM, USER

SHARED = 0  # the segment that all others attend to; padding has segment -1


@dataclass(frozen=True, slots=True, eq=False)
class PackedBatch:
    """Conversations as arrays. B sequences of length L with N pictures in all, in reading order.

    tokens, positions, segments: (B, L). `targets` (B, L) is the next token if it belongs to an answer, else -100.
    `answers` (B, L) is the number, from 0, of the answer that the target belongs to, else -1.
    pixels (N, 64, 64, 3); patches (N, 4, 64).
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: NDArray[np.int64]
    targets: NDArray[np.int64]
    answers: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    patches: NDArray[np.int64]


class Packer:
    """Packs conversations with a tokenizer, into sequences of `length` tokens."""

    def __init__(self, tokenizer: Tokenizer, length: int) -> None:
        self.length = length
        self._tokenizer = tokenizer
        self._special = {
            token: tokenizer.encode(token).ids[0] for token in (PAD, BEGIN, END, SYSTEM, USER, ASSISTANT, IMAGE)
        }

    def pack(self, conversations: list[Conversation]) -> PackedBatch:
        """Pack conversations, one per sequence; turns that do not fit are left out, and their pictures too.

        Raises:
            ValueError: if the pictures that independent turns share do not fit.
        """
        shape = (len(conversations), self.length)
        tokens = np.full(shape, self._special[PAD])
        positions = np.zeros(shape, dtype=np.int64)
        segments = np.full(shape, -1)
        targets = np.full(shape, IGNORED)
        answers = np.full(shape, -1)
        pictures: list[DrawnPicture] = []
        answered = 0
        for row, conversation in enumerate(conversations):
            sequence = self._sequence(conversation)
            count = len(sequence.tokens)
            if count > self.length:
                raise ValueError(f"{count} tokens of pictures do not fit into a sequence of {self.length}")
            tokens[row, :count] = sequence.tokens
            positions[row, :count] = sequence.positions
            segments[row, :count] = sequence.segments
            for start, stop in sequence.answers:  # the token before predicts the first token of the answer
                targets[row, start - 1 : stop - 1] = tokens[row, start:stop]
                answers[row, start - 1 : stop - 1] = answered
                answered += 1
            pictures += conversation.pictures[: sequence.pictures]
        return PackedBatch(
            tokens=tokens,
            positions=positions,
            segments=segments,
            targets=targets,
            answers=answers,
            pixels=np.array([p.pixels for p in pictures], np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 3),
            patches=np.array([p.patches for p in pictures], np.int64).reshape(-1, len(PATCH_CLASSES), PATCHES),
        )

    def _sequence(self, conversation: Conversation) -> "_Sequence":
        special = self._special
        encoded = self._tokenizer.encode_batch_fast(
            [text for turn in conversation.turns for text in (turn.question.text, turn.question.answer)]
            + [conversation.system]
        )
        opening = [special[BEGIN]]
        if conversation.system:
            opening += [special[SYSTEM], *encoded[-1].ids, special[END]]
        sequence = _Sequence(opening, list(range(len(opening))), [SHARED] * len(opening), [], 0)
        if conversation.independent:
            sequence.append([special[USER], *self._images(len(conversation.pictures))], SHARED)
            sequence.pictures = len(conversation.pictures)
        prefix = len(sequence.tokens)
        for index, turn in enumerate(conversation.turns):
            question, answer = encoded[2 * index].ids, encoded[2 * index + 1].ids
            start = [] if conversation.independent else [special[USER], *self._images(turn.new_pictures)]
            asked = [*start, *question, special[END], special[ASSISTANT]]
            if len(sequence.tokens) + len(asked) + len(answer) + 1 > self.length:
                break
            segment, offset = (index + 1, prefix) if conversation.independent else (SHARED, None)
            sequence.append(asked, segment, offset)
            first = len(sequence.tokens)
            sequence.append([*answer, special[END]], segment)
            sequence.answers.append((first, len(sequence.tokens)))
            sequence.pictures += turn.new_pictures
        return sequence

    def _images(self, count: int) -> list[int]:
        return [self._special[IMAGE]] * (count * PATCHES)


@dataclass(slots=True)
class _Sequence:
    """A sequence under construction; `answers` are half-open ranges of tokens."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    answers: list[tuple[int, int]]
    pictures: int

    def append(self, tokens: list[int], segment: int, position: int | None = None) -> None:
        """Add tokens to a segment, at `position` or after the last token's position."""
        first = self.positions[-1] + 1 if position is None else position
        self.tokens += tokens
        self.positions += range(first, first + len(tokens))
        self.segments += [segment] * len(tokens)
