"""The language model behind vLLM's HTTP API. It gets embeddings only, so no unsmoothed image can reach it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.language_models.base import IMAGE_PART, ChatRequest, ImagePayload
from server.language_models.vllm.exchange import ExchangeError
from server.language_models.vllm.retries import Outcome
from server.language_models.vllm.upstreams import Upstreams


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
    """

    def __init__(self, upstreams: Upstreams, model_name: str) -> None:
        self._upstreams = upstreams
        self._model_name = model_name

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

    async def ready(self) -> bool:
        """See :class:`LanguageModel`."""
        return await self._upstreams.ready()

    async def close(self) -> None:
        """See :class:`LanguageModel`."""
        await self._upstreams.close()
