"""Metrics and traces of a language model's calls, by OpenTelemetry's conventions for generative AI."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from server.errors import ApiError
from server.language_models.base import ChatRequest, CopyAnswer, CopySource, LanguageModel
from server.observability.model_metrics import ModelMetrics
from server.observability.tracing import record_failure, tracer

T = TypeVar("T")

# The numeric request fields of these conventions. Other fields may hold the client's text, so they are not traced.
_REQUEST_NUMBERS = {
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}
_FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})


class ObservedLanguageModel:
    """Forwards every call to ``inner``, and records metrics and a span.

    Args:
        inner: The language model.
        metrics: Receives durations, token counts and errors.
        model_name: The model's name in answers to clients.
        provider: Kind of the language model, for traces: ``vllm`` or ``embedded``.
    """

    def __init__(self, inner: LanguageModel, metrics: ModelMetrics, model_name: str, provider: str) -> None:
        self._inner = inner
        self._metrics = metrics
        self._model_name = model_name
        self._provider = provider

    async def start(self) -> None:
        """See :class:`LanguageModel`."""
        await self._inner.start()

    async def admit(self) -> None:
        """See :class:`LanguageModel`."""
        try:
            await self._inner.admit()
        except ApiError as error:
            self._count(error)
            raise

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """See :class:`LanguageModel`."""
        call = self._begin(request)
        try:
            with _current(call.span):
                answer = await self._inner.complete(request)
            call.read(answer)
            call.succeeded()
        except ApiError as error:
            self._count(error)
            raise
        finally:
            call.end()
        return answer

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """See :class:`LanguageModel`."""
        call = self._begin(request)
        async with aclosing(self._inner.stream(request)) as chunks:  # type: ignore[type-var] # async generators
            try:
                while (chunk := await _next(chunks, call.span)) is not None:
                    call.read(chunk)
                    yield chunk
                call.succeeded()
            except ApiError as error:
                self._count(error)
                raise
            finally:
                call.end()

    async def answers(
        self, request: ChatRequest, copies: CopySource, choices: tuple[str, ...] | None
    ) -> AsyncGenerator[CopyAnswer | ApiError, None]:
        """See :class:`LanguageModel`. All votes are one span."""
        call = self._begin(request)
        async with aclosing(self._inner.answers(request, copies, choices)) as answers:
            try:
                while (answer := await _next(answers, call.span)) is not None:
                    if isinstance(answer, ApiError):
                        self._count(answer)
                    else:
                        call.read_vote(answer.completion)
                    yield answer
            except ApiError as error:
                self._count(error)
                raise
            finally:
                call.end()

    async def ready(self) -> bool:
        """See :class:`LanguageModel`."""
        return await self._inner.ready()

    async def close(self) -> None:
        """See :class:`LanguageModel`."""
        await self._inner.close()

    def _begin(self, request: ChatRequest) -> _Call:
        attributes: dict[str, str | int | float | bool] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": self._provider,
            "gen_ai.request.model": self._model_name,
            "fs.images": len(request.images),
        }
        for field, name in _REQUEST_NUMBERS.items():
            value = request.body.get(field)
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:
                attributes[name] = value
        span = tracer.start_span(f"chat {self._model_name}", kind=SpanKind.CLIENT, attributes=attributes)
        return _Call(self._metrics, span)

    def _count(self, error: ApiError) -> None:
        if error.code.startswith("language_model_"):
            self._metrics.count_language_model_error(error.code)


class _Call:
    """Measurements of one call."""

    def __init__(self, metrics: ModelMetrics, span: Span) -> None:
        self.span = span
        self._metrics = metrics
        self._start = time.perf_counter()
        self._reasons: list[str] = []
        self._usage: dict[str, Any] = {}
        self._first_token_seen = False

    def read(self, answer: dict[str, Any]) -> None:
        """Reads finish reasons, usage and the time to first token from an answer or a chunk."""
        for choice in answer.get("choices") or ():
            if reason := choice.get("finish_reason"):
                self._reasons.append(reason if reason in _FINISH_REASONS else "other")
            delta = choice.get("delta") or {}
            if not self._first_token_seen and any(value for key, value in delta.items() if key != "role"):
                self._first_token_seen = True
                seconds = time.perf_counter() - self._start
                self._metrics.observe_stage("first_token", seconds)
                self.span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        self._usage = answer.get("usage") or self._usage  # a stream may state it with every chunk

    def read_vote(self, answer: dict[str, Any]) -> None:
        """Counts the tokens of one of several answers."""
        for direction, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            self._metrics.count_tokens(direction, (answer.get("usage") or {}).get(name) or 0)

    def succeeded(self) -> None:
        """Records metrics of a complete answer."""
        self._metrics.observe_stage("language_model", time.perf_counter() - self._start)
        for direction, name in (("input", "prompt_tokens"), ("output", "completion_tokens")):
            if count := self._usage.get(name):
                self._metrics.count_tokens(direction, count)
                self.span.set_attribute(f"gen_ai.usage.{direction}_tokens", count)

    def end(self) -> None:
        """Ends the span, also when the answer is incomplete."""
        if self._reasons:
            self.span.set_attribute("gen_ai.response.finish_reasons", self._reasons)
        self.span.end()


@contextmanager
def _current(span: Span) -> Iterator[None]:
    """Makes the span current, so that the back end forwards its id."""
    with trace.use_span(span, record_exception=False, set_status_on_exception=False), record_failure(span):
        yield


async def _next(chunks: AsyncIterator[T], span: Span) -> T | None:
    """Returns the next one. The span is current only here, since several tasks may ask for them."""
    with _current(span):
        return await anext(chunks, None)
