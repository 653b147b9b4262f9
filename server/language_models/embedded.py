"""The back end that runs a language model in this process."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fs_runtime.embedded import ContextLengthError, EmbeddedModel, Generation, Piece, PromptError
from server.errors import ApiError, from_validation, invalid
from server.language_models.answer_thread import AnswerThread
from server.language_models.base import IMAGE_PART, ChatRequest, ImagePayload
from server.settings.gateway import Settings


def _seed(seed: int) -> int:
    if not -(2**63) <= seed < 2**64:
        raise ValueError("must be from -2^63 to 2^64 - 1")
    return seed


class _TextFormat(BaseModel):
    """OpenAI's default format of an answer."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]


# Unsupported options: what to say of values that would have an effect.
_UNSUPPORTED = {
    "n": "makes one answer",
    "frequency_penalty": "has no penalties",
    "presence_penalty": "has no penalties",
    "response_format": "answers in plain text only",
    "modalities": "answers in plain text only",
    "logprobs": "gives no log probabilities",
    "top_logprobs": "gives no log probabilities",
    "logit_bias": "takes no bias",
    "tools": "calls no tools",
    "tool_choice": "calls no tools",
}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class _Options(BaseModel):
    """The fields of OpenAI's request that this back end accepts. Some only with values that have no effect."""

    model_config = ConfigDict(extra="forbid")

    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: str | list[str] | None = None
    seed: Annotated[int, AfterValidator(_seed)] | None = None
    n: Literal[1] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    response_format: _TextFormat | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0)
    tools: list[Any] | None = Field(None, max_length=0)
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None

    def generation(self, default_length: int) -> Generation:
        """Returns the options for the model."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Generation(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or default_length,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
        )


class EmbeddedLanguageModel:
    """Runs :class:`fs_runtime.embedded.EmbeddedModel` on one thread, one answer at a time.

    Args:
        settings: Default length of an answer, and the limit of waiting requests.
        model: The loaded model.
        model_name: The model's name in answers to clients.
    """

    def __init__(self, settings: Settings, model: EmbeddedModel, model_name: str) -> None:
        self._model = model
        self._model_name = model_name
        self._default_length = settings.max_new_tokens
        self._thread = AnswerThread(1 + settings.max_waiting)

    async def start(self) -> None:
        """Nothing to do: it was loaded at start."""

    async def admit(self) -> None:
        """See :class:`LanguageModel`."""
        self._thread.admit()

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """See :class:`LanguageModel`."""
        async with aclosing(self._pieces(request)) as pieces:
            made = [pair async for pair in pieces]
        prompt_length, last = made[-1]
        return {
            **self._frame("chat.completion"),
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "".join(piece.text for _, piece in made),
                        "refusal": None,
                    },
                    "finish_reason": last.finish_reason,
                    "logprobs": None,
                }
            ],
            "usage": _usage(prompt_length, last),
        }

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """See :class:`LanguageModel`."""
        frame = self._frame("chat.completion.chunk")

        def chunk(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
            return {**frame, "choices": [choice]}

        async with aclosing(self._pieces(request)) as pieces:
            prompt_length, piece = await anext(pieces)  # raises if the prompt is invalid, before any chunk is sent
            yield chunk({"role": "assistant", "content": ""})
            async for _, piece in pieces:
                if piece.text:
                    yield chunk({"content": piece.text})
        yield chunk({}, piece.finish_reason)
        if (request.body.get("stream_options") or {}).get("include_usage"):
            yield {**frame, "choices": [], "usage": _usage(prompt_length, piece)}

    async def ready(self) -> bool:
        """Always: it was loaded at start."""
        return True

    async def close(self) -> None:
        """Ends the answer in progress and those that wait."""
        await self._thread.close()

    def _pieces(self, request: ChatRequest) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yields the prompt's length with each piece: an empty one once the prompt is made, then those of the answer.

        Raises:
            ApiError: The request has unsupported options. While iterating, as :meth:`_make` and
                :meth:`AnswerThread.pieces`.
        """
        known = _Options.model_fields
        given = {name: value for name, value in request.body.items() if value is not None}  # null is as good as absent
        others = (name for name in given if name not in known and name not in ("model", "messages"))
        first = next(others, None)  # only the first: reporting very many would block the event loop
        body = {name: value for name, value in given.items() if name in known or name == first}
        try:
            options = _Options.model_validate(body).generation(self._default_length)
        except ValidationError as error:
            raise _explained(from_validation(error)) from None
        messages = _template_messages(request)
        return self._thread.pieces(lambda ended: self._make(messages, request.images, options, ended))

    def _make(
        self, messages: list[dict[str, Any]], images: list[ImagePayload], options: Generation, ended: threading.Event
    ) -> Iterator[tuple[int, Piece]]:
        """Makes the prompt and generates the answer; runs on the thread.

        Raises:
            ApiError: The prompt cannot be made, or is too long.
        """
        try:
            prompt = self._model.prompt(messages, images)
        except ContextLengthError as error:
            raise invalid(str(error), "messages", "context_length_exceeded") from error
        except PromptError as error:
            raise invalid(str(error), "messages") from error
        yield prompt.length, Piece("", 0)
        for piece in self._model.generate(prompt, options, ended):
            yield prompt.length, piece

    def _frame(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self._model_name,
        }


def _explained(error: ApiError) -> ApiError:
    """Adds what this back end supports to an error about an option."""
    name = (error.param or "").partition(".")[0]
    if name in _UNSUPPORTED:
        error.message = f"{error.param}: the embedded language model {_UNSUPPORTED[name]}; leave {name} out"
    elif error.code == "unknown_parameter":
        error.message += "; the embedded language model knows " + ", ".join(_Options.model_fields)
    return error


def _usage(prompt_length: int, last: Piece) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_length,
        "completion_tokens": last.tokens,
        "total_tokens": prompt_length + last.tokens,
    }


def _template_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """Converts messages to the form of chat templates, in which each content is a list of parts.

    Raises:
        ApiError: A message has a role that the embedded model does not support, such as ``tool``.
    """
    messages = []
    for index, message in enumerate(request.body["messages"]):
        role = _ROLES.get(message["role"])
        if role is None:
            raise invalid(
                f"messages.{index}.role: the embedded language model knows {', '.join(_ROLES)}",
                f"messages.{index}.role",
            )
        content = message.get("content") or ""
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        messages.append(
            {
                "role": role,
                "content": [{"type": "image"} if part["type"] == IMAGE_PART else part for part in parts],
            }
        )
    return messages
