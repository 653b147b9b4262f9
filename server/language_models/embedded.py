"""The back end that runs a language model in this process."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from fs_runtime.embedded import (
    ContextLengthError,
    EmbeddedModel,
    Form,
    FormError,
    Generation,
    Piece,
    Prompt,
    PromptError,
)
from server.errors import ApiError, from_validation, invalid
from server.language_models.answer_thread import AnswerThread
from server.language_models.base import IMAGE_PART, ChatRequest, CopyAnswer, CopySource, ImagePayload
from server.settings.gateway import Settings


def _seed(seed: int) -> int:
    if not -(2**63) <= seed < 2**64:
        raise ValueError("must be from -2^63 to 2^64 - 1")
    return seed


class _Format(BaseModel):
    """OpenAI's formats of an answer: text, JSON, or JSON of a schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object"]

    def form(self) -> Form | None:
        """The form of answers; None for any."""
        return Form.of_json() if self.type == "json_object" else None


class _JsonSchema(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class _SchemaFormat(BaseModel):
    """OpenAI's format of an answer with a JSON schema."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["json_schema"]
    json_schema: _JsonSchema

    def form(self) -> Form:
        """The form of answers. Raises :class:`FormError`."""
        return Form.of_json(self.json_schema.schema_)


# Unsupported options: what to say of values that would have an effect.
_UNSUPPORTED = {
    "n": "makes one answer",
    "frequency_penalty": "has no penalties",
    "presence_penalty": "has no penalties",
    "response_format": "answers in the formats text, json_object and json_schema",
    "modalities": "answers in plain text only",
    "logprobs": "gives no log probabilities",
    "top_logprobs": "gives no log probabilities",
    "logit_bias": "takes no bias",
    "tools": "calls no tools",
    "tool_choice": "calls no tools",
}
_TOGETHER = 32  # copies whose answers are made together
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
    response_format: Annotated[_Format | _SchemaFormat, Field(discriminator="type")] | None = None
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

    def generation(self, default_length: int, choices: tuple[str, ...] | None = None) -> Generation:
        """Returns the options for the model.

        Raises:
            FormError: Answers cannot have the format.
        """
        form = None if self.response_format is None else self.response_format.form()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Generation(
            max_new_tokens=self.max_completion_tokens or self.max_tokens or default_length,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=self.seed,
            form=form if choices is None else Form.of_choices(choices),
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
        return self._completion(prompt_length, "".join(piece.text for _, piece in made), last)

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

    async def answers(
        self, request: ChatRequest, copies: CopySource, choices: tuple[str, ...] | None
    ) -> AsyncGenerator[CopyAnswer | ApiError, None]:
        """See :class:`LanguageModel`. As many copies as are there are answered together."""
        options = self._generation(request, choices)
        messages = _template_messages(request)
        self._thread.admit()
        while batch := await copies.take(_TOGETHER):

            def make(ended: threading.Event, batch: list[list[ImagePayload]] = batch) -> Iterator[list[CopyAnswer]]:
                yield self._together(messages, batch, options, ended)

            async with aclosing(self._thread.pieces(make, admitted=True)) as made:
                async for answers in made:
                    for answer in answers:
                        yield answer

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
        options = self._generation(request)
        messages = _template_messages(request)
        return self._thread.pieces(lambda ended: self._make(messages, request.images, options, ended))

    def _generation(self, request: ChatRequest, choices: tuple[str, ...] | None = None) -> Generation:
        """The options of a request.

        Raises:
            ApiError: One is not supported, or answers cannot have the format.
        """
        known = _Options.model_fields
        given = {name: value for name, value in request.body.items() if value is not None}  # null is as good as absent
        others = (name for name in given if name not in known and name not in ("model", "messages"))
        first = next(others, None)  # only the first: reporting very many would block the event loop
        body = {name: value for name, value in given.items() if name in known or name == first}
        try:
            options = _Options.model_validate(body).generation(self._default_length, choices)
        except ValidationError as error:
            raise _explained(from_validation(error)) from None
        if options.form is not None:
            try:
                self._model.check_form(options.form)
            except FormError as error:
                name = "response_format" if choices is None else "robustness.answer.choices"
                raise invalid(f"{name}: {error}", name) from None
        return options

    def _make(
        self, messages: list[dict[str, Any]], images: list[ImagePayload], options: Generation, ended: threading.Event
    ) -> Iterator[tuple[int, Piece]]:
        """Makes the prompt and generates the answer; runs on the thread.

        Raises:
            ApiError: The prompt cannot be made, or is too long.
        """
        prompt = self._prompt(messages, images)
        yield prompt.length, Piece("", 0)
        for piece in self._model.generate(prompt, options, ended):
            yield prompt.length, piece

    def _together(
        self,
        messages: list[dict[str, Any]],
        copies: list[list[ImagePayload]],
        options: Generation,
        ended: threading.Event,
    ) -> list[CopyAnswer]:
        """Answers some copies; runs on the thread. Raises as :meth:`_make`."""
        prompts = [self._prompt(messages, images) for images in copies]
        answers = self._model.answers(prompts, options, ended) or []
        return [
            CopyAnswer(self._completion(prompt.length, answer.text, answer))
            for prompt, answer in zip(prompts, answers, strict=False)
        ]

    def _prompt(self, messages: list[dict[str, Any]], images: list[ImagePayload]) -> Prompt:
        """Raises :class:`ApiError`: the prompt cannot be made, or is too long."""
        try:
            return self._model.prompt(messages, images)
        except ContextLengthError as error:
            raise invalid(str(error), "messages", "context_length_exceeded") from error
        except PromptError as error:
            raise invalid(str(error), "messages") from error

    def _completion(self, prompt_length: int, text: str, last: Piece) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            **self._frame("chat.completion"),
            "choices": [{"index": 0, "message": message, "finish_reason": last.finish_reason, "logprobs": None}],
            "usage": _usage(prompt_length, last),
        }

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
