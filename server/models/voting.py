"""The vote on an answer: every noisy copy of the images is asked about by itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fs_runtime.certificate.vote_bound import PILOT
from fs_runtime.engine import Copies
from fs_runtime.votes import FIRST_LOOK, Ballot, Value
from server.errors import ApiError
from server.language_models.base import ChatRequest, CopyAnswer, ImagePayload, LanguageModel
from server.models.vote_rate import VoteRate
from server.observability.model_metrics import ModelMetrics
from server.robustness.answer_entry import AnswerEntry, AnswerUsage, model_radius
from server.robustness.answer_plan import AnswerPlan
from server.settings.model import PerModelSettings

_MOST_FAILED = 0.1  # of all copies: above it, what fails is the language model, not the vote
_MOST_COMPLETIONS = 64  # answers that are kept until it is known which is returned


class _Reader:
    """The copies of all images of a request, one of each at a time."""

    def __init__(self, images: int) -> None:
        loop, self._there = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._there.set)

        self.copies = [Copies(notify) for _ in range(images)]

    async def take(self, most: int) -> list[list[ImagePayload]]:
        """See :class:`CopySource`."""
        while True:
            self._there.clear()
            # One image may be done before another has begun.
            ended = any(each.ended and not each.ready for each in self.copies)
            ready = min(each.ready for each in self.copies)
            if ready:
                count = min(most, ready)
                return [list(images) for images in zip(*(each.take(count) for each in self.copies), strict=True)]
            if ended:
                return []
            await self._there.wait()

    @property
    def spectral_norms(self) -> list[float]:
        """Of each image, once its first copy is there."""
        return [each.spectral_norm for each in self.copies]

    def want(self, count: int) -> None:
        for each in self.copies:
            each.want(count)

    def release(self) -> None:
        for each in self.copies:
            each.release(1)

    def end(self, *, go_on: bool) -> None:
        for each in self.copies:
            each.let_go() if go_on else each.stop()
            each.close()


@dataclass(slots=True)
class Vote:
    """The vote on the answer to one request.

    Args:
        plan: How it is voted on.
        request: As it is asked for each copy, but for its images.
        purpose: All that the vote depends on, images and model apart: draws for another purpose are others.
        model: Answers.
        settings: Of the model.
        metrics: Counts votes.
        progress: Called at each vote.
        rate: Of all votes of the model.

    Attributes:
        completion: Of the answer that is returned; None until the vote has ended.
    """

    plan: AnswerPlan
    request: ChatRequest
    purpose: str
    model: LanguageModel
    settings: PerModelSettings
    metrics: ModelMetrics
    progress: Callable[[], None] = lambda: None
    rate: VoteRate = field(default_factory=VoteRate)
    completion: dict[str, Any] | None = None
    _digests: dict[int, str] = field(default_factory=dict)
    _all_known: asyncio.Event = field(default_factory=asyncio.Event)
    _reader: _Reader | None = None
    _ballot: Ballot | None = None
    _in_time: bool = True
    _returned: bool = True
    _usage: list[int] = field(default_factory=lambda: [0, 0])

    @property
    def copies(self) -> int:
        """Copies asked about so far."""
        return 0 if self._ballot is None else self._ballot.copies

    def copies_for(self, images: int) -> list[Copies]:
        """Where the engine puts the copies of each image."""
        self._reader = _Reader(images)
        return self._reader.copies

    async def purpose_of(self, position: int, image_id: str) -> str:
        """Names the draws of one image: they are for this request, for all its images in order, and this position."""
        assert self._reader is not None  # noqa: S101 (copies_for comes first)
        self._digests[position] = image_id
        if len(self._digests) == len(self._reader.copies):
            self._all_known.set()
        await self._all_known.wait()
        images = [self._digests[number] for number in range(len(self._digests))]
        named = json.dumps([self.purpose, self.plan.reading.description(), images, position])
        return hashlib.sha256(named.encode()).hexdigest()

    async def run(self, sigma: float, confidence: float, *, go_on: bool) -> None:
        """Asks about copies until the vote is settled, or all are there, or time is over.

        Args:
            sigma: σ.
            confidence: 1 - α of the statement.
            go_on: Whether images have samples to draw beyond the votes.

        Raises:
            ApiError: The language model failed.
        """
        assert self._reader is not None  # noqa: S101 (copies_for comes first)
        reader, plan, began = self._reader, self.plan, time.perf_counter()
        self._ballot = ballot = Ballot(plan.reading, confidence, sigma, plan.samples)
        kept: dict[tuple[Value | None, ...], dict[str, Any]] = {}
        try:
            async with asyncio.timeout(self.settings.answer_timeout):
                with self.rate.running(lambda: plan.samples - ballot.copies):
                    await self._count(reader, ballot, kept)
        except TimeoutError:
            self._in_time = False
        finally:
            reader.end(go_on=go_on)
            self.metrics.count_votes(ballot.copies - ballot.failed, ballot.failed)
        self.completion, self._returned = _chosen(ballot, kept)
        if self.completion is None:
            raise ApiError(
                504,
                f"no copy was answered within {self.settings.answer_timeout:g} s; try again later",
                code="answer_timeout",
            )
        self.metrics.observe_stage("votes", time.perf_counter() - began)

    async def _count(
        self, reader: _Reader, ballot: Ballot, kept: dict[tuple[Value | None, ...], dict[str, Any]]
    ) -> None:
        plan = self.plan
        # Where the radius is that of the images as sent, how far it goes is known once they are prepared.
        radius = plan.radius if plan.space == "model" else None
        look = plan.samples
        if plan.adaptive:
            look = min(FIRST_LOOK, plan.samples) if radius is None else ballot.next_look(radius)
        reader.want(look)
        async with aclosing(self.model.answers(self.request, reader, plan.choices)) as answers:
            async for answer in answers:
                reader.release()
                if isinstance(answer, ApiError):
                    ballot.add_failure()
                    from_the_start = ballot.failed == ballot.copies == min(PILOT, plan.samples)
                    if from_the_start or ballot.failed > max(1, _MOST_FAILED * plan.samples):
                        raise answer
                else:
                    self._add(ballot, answer, kept)
                self.rate.count()
                self.progress()
                if ballot.copies >= plan.samples or ballot.split:
                    return
                if ballot.copies >= look:
                    if radius is None:
                        radius = model_radius(plan.radius, plan.space, reader.spectral_norms)
                    if ballot.settled(radius):
                        return
                    look = ballot.next_look(radius)
                    reader.want(look)

    def _add(self, ballot: Ballot, answer: CopyAnswer, kept: dict[tuple[Value | None, ...], dict[str, Any]]) -> None:
        values = ballot.add(answer.text, answer.finished)
        if values not in kept and len(kept) < _MOST_COMPLETIONS:
            kept[values] = answer.completion
        usage = answer.completion.get("usage") or {}
        for number, name in enumerate(("prompt_tokens", "completion_tokens")):
            self._usage[number] += int(usage.get(name) or 0)

    def entry(self, spectral_norms: Sequence[float], confidence: float, beside: int) -> AnswerEntry:
        """What is certified, once the vote has ended.

        Args:
            spectral_norms: ‖A‖₂ from each image as sent to the encoder's.
            confidence: 1 - α of each statement.
            beside: Statements about the images, with an α each.
        """
        assert self._ballot is not None  # noqa: S101 (run comes first)
        prompt, completion = self._usage
        return AnswerEntry.of(
            self._ballot,
            self.plan,
            spectral_norms,
            confidence,
            AnswerUsage(prompt, completion, prompt + completion),
            beside=beside,
            in_time=self._in_time,
            returned=self._returned,
        )


def _chosen(ballot: Ballot, kept: dict[tuple[Value | None, ...], dict[str, Any]]) -> tuple[dict[str, Any] | None, bool]:
    """The answer that is returned, and whether it carries all winners.

    Where the pilot chose none, it carries what was most frequent. Where no copy carries all, its text is left out.
    """
    wanted = tuple(
        frequent if winner is None else winner
        for winner, frequent in zip(ballot.winners, ballot.most_frequent, strict=True)
    )
    if wanted in kept:
        return kept[wanted], None not in ballot.winners
    first = next(iter(kept.values()), None)
    if first is None or None in wanted:  # nothing to choose from
        return first, False
    choice = first["choices"][0]
    return {**first, "choices": [{**choice, "message": {**choice["message"], "content": None}}]}, False
