"""The language model behind vLLM's HTTP API. It gets embeddings only, so no unsmoothed image can reach it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fs_runtime.engine.fair_gate import FairGate
from server.errors import ApiError
from server.language_models.base import IMAGE_PART, ChatRequest, CopyAnswer, CopySource, ImagePayload
from server.language_models.vllm import errors as upstream_errors
from server.language_models.vllm.exchange import ExchangeError
from server.language_models.vllm.retries import Outcome
from server.language_models.vllm.upstreams import Upstreams

T = TypeVar("T")


def _npy(array: NDArray[np.generic]) -> str:
    """Base64 of a ``.npy`` file: vLLM reads it without pickle."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def image_part(payload: ImagePayload) -> dict[str, Any]:
    """Makes vLLM's content part for one image: bare embeddings, or a dictionary if the family sends more tensors."""
    embeds: str | dict[str, str] = (
        _npy(payload["image_embeds"])
        if payload.keys() == {"image_embeds"}
        else {name: _npy(array) for name, array in payload.items()}
    )
    return {"type": "image_embeds", "image_embeds": embeds}


def vllm_body(request: ChatRequest, model: str) -> dict[str, Any]:
    """Makes the request for vLLM: embeddings replace images, and ``model`` is the model's name at vLLM."""
    messages: list[dict[str, Any]] = []
    for message in request.body["messages"]:
        content = message.get("content")
        if isinstance(content, list):
            content = [
                image_part(request.images[part["index"]]) if part["type"] == IMAGE_PART else part for part in content
            ]
            message = {**message, "content": content}
        messages.append(message)
    salt = {} if request.cache_salt is None else {"cache_salt": request.cache_salt}
    return {**request.body, "model": model, "messages": messages, **salt}


def _encode(request: ChatRequest, model: str) -> bytes:
    return json.dumps(vllm_body(request, model), separators=(",", ":")).encode("ascii")


class VllmLanguageModel:
    """A language model that a pool of vLLM servers runs.

    Args:
        upstreams: The pool.
        model_name: The model's name in answers to clients.
        max_votes: Most votes of certified answers at the servers at once.
    """

    def __init__(self, upstreams: Upstreams, model_name: str, max_votes: int = 16) -> None:
        self._upstreams = upstreams
        self._model_name = model_name
        self._max_votes = max_votes
        self._votes = FairGate(max_votes)

    async def start(self) -> None:
        """See :class:`LanguageModel`."""
        await self._upstreams.start()

    async def admit(self) -> None:
        """See :class:`LanguageModel`."""
        await self._upstreams.admit()

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """See :class:`LanguageModel`."""
        exchange = await self._upstreams.open(partial(_encode, request), request.request_id, streamed=False)
        await self._upstreams.end(exchange, Outcome.ANSWERED)
        return {**exchange.first, "model": self._model_name}

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """See :class:`LanguageModel`."""
        exchange = await self._upstreams.open(partial(_encode, request), request.request_id, streamed=True)
        outcome = Outcome.WITHDRAWN  # the default: the reader may stop at any event
        try:
            yield {**exchange.first, "model": self._model_name}
            async for event in exchange.remaining_events():
                yield {**event, "model": self._model_name}
            outcome = Outcome.ANSWERED
        except ExchangeError as error:
            outcome = error.outcome
            raise error.api_error from error
        finally:
            await self._upstreams.end(exchange, outcome)

    async def answers(
        self, request: ChatRequest, copies: CopySource, choices: tuple[str, ...] | None
    ) -> AsyncGenerator[CopyAnswer | ApiError, None]:
        """See :class:`LanguageModel`. Each copy is a request of its own; tenants' votes take turns."""
        body = request.body
        if choices is not None:
            body = {**body, "structured_outputs": {"choice": list(choices)}}
        # In the order of the copies, whatever the order in which the answers arrive.
        votes: asyncio.Queue[asyncio.Task[CopyAnswer | ApiError] | None] = asyncio.Queue(self._max_votes)
        pending: set[asyncio.Task[CopyAnswer | ApiError]] = set()

        async def ask() -> None:
            number = 0
            while batch := await copies.take(1):
                for images in batch:
                    number += 1
                    own = replace(request, body=body, images=images, request_id=f"{request.request_id}-{number}")
                    vote = asyncio.create_task(self._vote(own))
                    pending.add(vote)
                    vote.add_done_callback(pending.discard)
                    await votes.put(vote)
            await votes.put(None)

        asking = asyncio.create_task(ask())
        try:
            while (vote := await _unless_failed(votes.get(), asking)) is not None:
                yield await vote
        finally:
            asking.cancel()
            for vote in list(pending):
                vote.cancel()

    async def _vote(self, request: ChatRequest) -> CopyAnswer | ApiError:
        """The answer to one copy, asked for again once if the servers' fault; or why there is none."""
        for attempt in (1, 2):
            await self._votes.enter(request.tenant)
            try:
                answer = CopyAnswer(await self.complete(request))
                _ = answer.text, answer.finished
                return answer
            except ApiError as error:
                if attempt == 2 or (error.status < 500 and error.status != 429):
                    return error
            except (KeyError, IndexError, TypeError, AttributeError):
                if attempt == 2:
                    return upstream_errors.failed()
            finally:
                self._votes.leave()
        raise AssertionError("not reached")

    async def ready(self) -> bool:
        """See :class:`LanguageModel`."""
        return await self._upstreams.ready()

    async def close(self) -> None:
        """See :class:`LanguageModel`."""
        await self._upstreams.close()


async def _unless_failed(wanted: Coroutine[Any, Any, T], work: asyncio.Task[None]) -> T:
    """Waits for something that ``work`` is to bring, and raises if that fails first."""
    task = asyncio.ensure_future(wanted)
    try:
        await asyncio.wait({task, work}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and work.done() and not work.cancelled() and work.exception() is not None:
            raise work.exception() or AssertionError("not reached")
        return await task
    finally:
        task.cancel()
