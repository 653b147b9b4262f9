"""Asks the model about noisy copies of a picture one by one, as the server does, and about their mean features."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.embedded import EmbeddedModel, Form, Generation
from fs_runtime.embedded.model import Payload
from fs_runtime.encoders import PreparedImage
from fs_runtime.evaluation.answers.items import VotedItem
from fs_runtime.evaluation.answers.plan import VotePlan
from fs_runtime.evaluation.answers.records import CopyAnswers, ItemVotes, VoteKey
from fs_runtime.smoothing.smoother import Smoother


class CopyAnswer(NamedTuple):
    """An answer, and whether the model ended it, rather than the limit of its length."""

    text: str
    finished: bool


class CopyAsker:
    """A model that is asked about copies.

    Args:
        smoother: Its vision part, with purifier and mapper.
        language: Its language model.
        max_new_tokens: Most tokens of an answer.
        batch_size: Copies in one pass, of either part.
    """

    def __init__(
        self, smoother: Smoother, language: EmbeddedModel, max_new_tokens: int = 64, batch_size: int = 32
    ) -> None:
        self.smoother, self.language = smoother, language
        self.batch_size = batch_size
        self._max_new_tokens = max_new_tokens

    def votes_on(
        self,
        key: VoteKey,
        item: VotedItem,
        plan: VotePlan,
        seed: int,
        advance: Callable[[int], None] = lambda _copies: None,
    ) -> ItemVotes:
        """Draws the copies of an item and asks about each; one set serves every n and both readings.

        Args:
            key: Number of the item, and σ.
            item: The question.
            plan: What is measured.
            seed: Of the noise.
            advance: Called with the number of copies that were asked about, after each batch.
        """
        image = self.smoother.encoder.prepare(item.read())
        choices: dict[str, Sequence[str] | None] = {"text": None}
        if item.choices is not None:
            choices["choices"] = item.choices
        clean = {name: self.ask(item.question, [self._clean(image)], given)[0].text for name, given in choices.items()}
        state = self.smoother.start(image, key.sigma, seed)
        state.keeps_copies = True
        sequence = NormConfidenceSequence(plan.confidence)
        answers: dict[str, list[CopyAnswer]] = {name: [] for name in choices}
        smoothing = answering = 0.0
        smoothed: dict[str, list[str]] = {name: [] for name in choices}
        norm_lower: list[float] = []
        for stop in plan.samples:
            while state.count < stop:
                began = time.perf_counter()
                (products,) = self.smoother.step([(state, min(self.batch_size, stop - state.count))])
                sequence.update(products.image.double().cpu().numpy())
                copies = self._payloads(state.copies, image)
                smoothing += time.perf_counter() - began
                began = time.perf_counter()
                free = self.ask(item.question, copies)
                answers["text"] += free
                answering += time.perf_counter() - began
                if item.choices is not None:
                    answers["choices"] += self._held_to(item.choices, item.question, copies, free)
                advance(len(copies))
            norm_lower.append(float(sequence.lower))
            mean = self.smoother.encoder.payload(self.smoother.finish(state).embeddings, image)
            for name, given in choices.items():
                smoothed[name].append(self.ask(item.question, [mean], given)[0].text)
        votes = {name: _gathered(found) for name, found in answers.items()}
        return ItemVotes(key, clean, votes, smoothed, norm_lower, smoothing, answering)

    def fresh_answers(self, image: PreparedImage, question: str, sigma: float, seed: int) -> Iterator[CopyAnswer]:
        """Free answers to one noisy copy after another, without end."""
        state = self.smoother.start(image, sigma, seed)
        state.keeps_copies = True
        while True:
            self.smoother.step([(state, self.batch_size)])
            yield from self.ask(question, self._payloads(state.copies, image))

    def ask(self, question: str, copies: Sequence[Payload], choices: Sequence[str] | None = None) -> list[CopyAnswer]:
        """Greedy answers to a question about each of some copies of one picture."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        form = None if choices is None else Form.of_choices(choices)
        options = Generation(self._max_new_tokens, temperature=0.0, form=form)
        found: list[CopyAnswer] = []
        for start in range(0, len(copies), self.batch_size):
            prompts = [self.language.prompt(messages, [copy]) for copy in copies[start : start + self.batch_size]]
            pieces = self.language.answers(prompts, options, threading.Event()) or []
            found += [CopyAnswer(piece.text, piece.finish_reason == "stop") for piece in pieces]
        return found

    def _held_to(
        self, choices: Sequence[str], question: str, copies: Sequence[Payload], free: Sequence[CopyAnswer]
    ) -> list[CopyAnswer]:
        """Answers that are held to choices, given the free ones.

        A free greedy answer that is one of the choices is also the greedy one among them: each of its tokens, and its
        end, is allowed and has the largest logit of all.
        """
        others = [i for i, one in enumerate(free) if not (one.finished and one.text in choices)]
        held = list(free)
        for i, one in zip(others, self.ask(question, [copies[i] for i in others], choices), strict=True):
            held[i] = one
        return held

    @torch.inference_mode()
    def _clean(self, image: PreparedImage) -> Payload:
        encoder = self.smoother.encoder
        x = image.pixels.to(encoder.device)[None]
        features = self.smoother.features(x, torch.zeros(1, device=x.device), image.grid, noisy=False)
        return encoder.payload(encoder.project(features, image.grid)[0], image)

    def _payloads(self, copies: torch.Tensor | None, image: PreparedImage) -> list[Payload]:
        assert copies is not None  # noqa: S101 (the state keeps them)
        return [self.smoother.encoder.payload(copy, image) for copy in copies]


def _gathered(answers: Sequence[CopyAnswer]) -> CopyAnswers:
    numbers = {answer: number for number, answer in enumerate(dict.fromkeys(answers))}
    return CopyAnswers(
        texts=[answer.text for answer in numbers],
        finished=[answer.finished for answer in numbers],
        copies=[numbers[answer] for answer in answers],
    )
