"""From a chat request with placeholders for its images to the answer: by one call, or by a vote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from server.errors import invalid
from server.language_models.base import ChatRequest
from server.models.answer_estimate import AnswerEstimate, estimate_answer
from server.models.served import ServedModel
from server.models.smoothing import Caller, ImageSource
from server.models.voting import Vote
from server.robustness.answer import Robustness
from server.robustness.answer_plan import ballot_body, check_votable
from server.robustness.options import RobustnessOptions
from server.robustness.withholding import withhold


class Answering:
    """One chat request on its way to its answer.

    Args:
        model: Answers.
        request: Its images are placeholders; texts are neutralised already.
    """

    def __init__(self, model: ServedModel, request: ChatRequest) -> None:
        self._model = model
        self._request = request
        self._voted = False

    def vote(self, options: RobustnessOptions, caller: Caller, *, images: int) -> Vote | None:
        """The vote that the request asks for, or its operator; None for none.

        Raises:
            ApiError: The answer cannot be voted on.
        """
        plan = self._model.smoothing.answer_plan(options, caller, has_images=images > 0)
        if plan is None:
            return None
        check_votable(self._request.body, plan, images)
        body = ballot_body(self._request.body, thinks=self._model.settings.language_model == "vllm")
        asked = {name: value for name, value in body.items() if name not in ("user", "metadata")}
        # Another question, or another way to answer it, is another attempt.
        purpose = hashlib.sha256(json.dumps([asked, self._request.cache_salt], sort_keys=True).encode()).hexdigest()
        return Vote(
            plan,
            replace(self._request, body=body),
            purpose,
            self._model.language_model,
            self._model.settings,
            self._model.metrics,
            rate=self._model.votes,
        )

    def estimate(self, options: RobustnessOptions, caller: Caller, vote: Vote | None, *, images: int) -> AnswerEstimate:
        """What the vote would cost, without taking it.

        Raises:
            ApiError: There is none, or the request would be refused.
        """
        if vote is None:
            raise invalid(
                "there is nothing to estimate, since no answer is to be certified; set certify",
                "robustness.answer.estimate",
            )
        smoothing = self._model.smoothing
        smoothing.check_number(images, caller)
        return estimate_answer(
            vote.plan,
            smoothing.plan(options, caller).terms,
            images,
            model=self._model.name,
            engine=self._model.engine,
            rate=self._model.votes,
        )

    async def smooth(
        self, sources: list[ImageSource], options: RobustnessOptions, caller: Caller, vote: Vote | None
    ) -> Robustness:
        """Smooths the images and takes the vote, if there is one. Raises as :meth:`SmoothingService.run`."""
        payloads, robustness = await self._model.smoothing.run(sources, options, caller, vote)
        images = withhold(self._request.body, payloads, robustness)
        self._request = replace(self._request, images=images)
        self._voted = vote is not None and not any(image.withheld for image in robustness.images)
        return robustness

    async def complete(self, vote: Vote | None) -> dict[str, Any]:
        """The whole answer, as an OpenAI chat completion: the vote's, or that of one call."""
        if self._voted and vote is not None and vote.completion is not None:
            return vote.completion
        return await self._model.language_model.complete(self._request)

    async def stream(self, vote: Vote | None) -> AsyncIterator[dict[str, Any]]:
        """The answer as OpenAI chat completion chunks; that of a vote is there in one piece."""
        if not self._voted or vote is None or vote.completion is None:
            async for chunk in self._model.language_model.stream(self._request):
                yield chunk
            return
        answer, usage = vote.completion, (self._request.body.get("stream_options") or {}).get("include_usage")
        frame: dict[str, Any] = {
            **{name: answer[name] for name in ("id", "created", "model") if name in answer},
            "object": "chat.completion.chunk",
        }
        choice = answer["choices"][0]
        content = choice["message"].get("content")
        for delta, reason in (({"role": "assistant", "content": content}, None), ({}, choice.get("finish_reason"))):
            yield {**frame, "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}
        if usage:
            yield {**frame, "choices": [], "usage": answer.get("usage")}
