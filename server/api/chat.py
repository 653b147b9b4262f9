"""``POST /v1/chat/completions``."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any

import structlog
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from server.api.dependencies import (
    ClientDisconnectedError,
    Gateway,
    admit,
    caller_of,
    gateway_of,
    model_for,
    read_body,
    while_connected,
)
from server.api.openapi import ERRORS, reference, request_body
from server.api.schemas import TEXT_PART_FIELDS, TEXT_PARTS, ChatCompletionRequest, ContentPart
from server.errors import ApiError, internal_error, invalid
from server.http.event_stream import EventStream
from server.language_models.base import IMAGE_PART, ChatRequest
from server.models.answer_estimate import AnswerEstimate
from server.models.answering import Answering
from server.models.served import ServedModel
from server.models.smoothing import ImageSource
from server.models.voting import Vote
from server.prompt_safety.answer_tokens import cap_answer_tokens
from server.prompt_safety.passthrough import check_template_variables, refuse_fields
from server.robustness.answer import Robustness

router = APIRouter()
log = structlog.get_logger("server.chat")

CLIENT_CLOSED_REQUEST = 499
_SILENT_SECONDS = 10.0  # after which a stream that waits says so, or proxies give its connection up
_EXAMPLE = {
    "model": "fs-reference",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What colour is the circle?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}},
            ],
        }
    ],
    "robustness": {"sigma": 0.1, "samples": 64, "radius": 0.05},
}
_COMPLETION = {
    "application/json": {
        "schema": {
            "anyOf": [
                {
                    "type": "object",
                    "description": "OpenAI's chat completion.",
                    "properties": {"robustness": reference(Robustness)},
                    "required": ["robustness"],
                },
                reference(AnswerEstimate),
            ]
        }
    },
    "text/event-stream": {},
}


@router.post(
    "/v1/chat/completions",
    dependencies=[Depends(admit)],
    openapi_extra={"requestBody": request_body(ChatCompletionRequest, _EXAMPLE)},
    responses={
        200: {
            "description": "The answer, with `robustness`; what a certified one would cost, where that is asked for.",
            "content": _COMPLETION,
        },
        **ERRORS,
    },
    summary="Answer a conversation; its images are smoothed and certified first.",
)
async def chat_completions(request: Request) -> Response:
    """OpenAI's chat completions; the answer carries one more object, ``robustness``."""
    chat, body = await read_body(request, ChatCompletionRequest)
    with ExitStack() as resources:
        model = resources.enter_context(model_for(request, chat.model))
        try:
            return await _answer(request, chat, body, model, resources)
        except ClientDisconnectedError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _answer(
    request: Request, chat: ChatCompletionRequest, body: dict[str, Any], model: ServedModel, resources: ExitStack
) -> Response:
    """Answers with one model. A stream takes over ``resources`` until its end."""
    gateway, caller = gateway_of(request), caller_of(request)
    settings = caller.tenant.settings_for(model.settings)
    body.pop("robustness", None)
    refuse_fields(body)
    check_template_variables(body.get("chat_template_kwargs"))
    cap_answer_tokens(body, settings.max_answer_tokens, model.settings.default_answer_tokens)
    cache_salt = gateway.access.cache_salt(caller.tenant, body.pop("cache_salt", None))
    sources = _take_images(chat, body)
    # On a thread: megabytes of text take a while.
    await asyncio.to_thread(model.control_tokens.neutralise_body, body, settings.max_text_characters)
    await model.language_model.admit()
    answering = Answering(model, ChatRequest(body, [], caller.request_id, cache_salt, caller.tenant.name))
    vote = answering.vote(chat.robustness, caller, images=len(sources))
    if chat.robustness.answer is not None and chat.robustness.answer.estimate:
        estimate = answering.estimate(chat.robustness, caller, vote, images=len(sources))
        return JSONResponse(dataclasses.asdict(estimate))
    smoothing = answering.smooth(sources, chat.robustness, caller, vote)
    if vote is not None and chat.stream and not vote.plan.may_reject:
        return await _stream_votes(request, answering, vote, smoothing, resources)
    robustness = await while_connected(request, smoothing)
    if chat.stream:
        chunks = answering.stream(vote)
        return await _start_stream(request, chunks, robustness, resources, voted=vote is not None)
    answer = await while_connected(request, answering.complete(vote))
    answer["robustness"] = robustness.model_dump(mode="json")
    return JSONResponse(answer)


async def _stream_votes(
    request: Request,
    answering: Answering,
    vote: Vote,
    smoothing: Coroutine[Any, Any, Robustness],
    resources: ExitStack,
) -> EventStream:
    """Begins the stream before the votes end: comment lines say how far they are, and the answer follows in one piece.

    It begins with the first vote, so that what is refused before, or fails, is an ordinary error answer.
    """
    gateway = gateway_of(request)
    progress = asyncio.Event()
    vote.progress = progress.set
    work = asyncio.create_task(smoothing)
    try:
        await while_connected(request, _first_of(work, progress))
        if work.done():
            return await _start_stream(request, answering.stream(vote), work.result(), resources, voted=True)
    except BaseException:
        work.cancel()
        raise

    async def events() -> AsyncGenerator[str, None]:
        try:
            async with gateway.drain.deadline():
                while not work.done():
                    yield f": {vote.copies} of {vote.plan.samples} votes\n\n"
                    progress.clear()
                    await _first_of(work, progress)
            chunks = answering.stream(vote)
            async with aclosing(chunks):  # type: ignore[type-var] # back ends are async generators
                first = await anext(chunks)
                async for chunk in _with_robustness(first, _until_drained(gateway, chunks), work.result(), voted=True):
                    yield _event(chunk)
        finally:
            work.cancel()

    return _event_stream(gateway, events(), resources)


async def _first_of(work: asyncio.Task[Any], progress: asyncio.Event) -> None:
    """Waits for the end of the work, for a sign of progress, or as long as a connection may be silent."""
    sign = asyncio.ensure_future(progress.wait())
    try:
        await asyncio.wait({work, sign}, timeout=_SILENT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    finally:
        sign.cancel()


async def _start_stream(
    request: Request,
    chunks: AsyncIterator[dict[str, Any]],
    robustness: Robustness,
    resources: ExitStack,
    *,
    voted: bool,
) -> EventStream:
    """Waits for the first chunk, so that an early failure is still an ordinary error answer."""
    gateway = gateway_of(request)
    try:
        first = await while_connected(request, anext(chunks))
    except StopAsyncIteration:
        raise ApiError(502, "the language model sent no answer; try again", code="language_model_broken_off") from None

    async def events() -> AsyncGenerator[str, None]:
        async with aclosing(chunks):  # type: ignore[type-var] # back ends are async generators
            async for chunk in _with_robustness(first, _until_drained(gateway, chunks), robustness, voted=voted):
                yield _event(chunk)

    return _event_stream(gateway, events(), resources)


def _event_stream(gateway: Gateway, events: AsyncGenerator[str, None], resources: ExitStack) -> EventStream:
    """A stream of events that tells of whatever ends it early, and takes over ``resources``."""

    async def told() -> AsyncGenerator[str, None]:
        async with aclosing(events):
            try:
                async for event in events:
                    yield event
            except ApiError as error:
                gateway.metrics.count_error(error)
                yield _event(error.body())
            except Exception:
                log.exception("stream failed")
                gateway.metrics.count_error(internal_error())
                yield _event(internal_error().body())
            yield "data: [DONE]\n\n"

    return EventStream(told(), gateway.settings.client_write_timeout, resources.pop_all())


async def _until_drained(gateway: Gateway, chunks: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    """Yields the chunks until a shutdown's time for requests in flight is over."""
    while True:
        try:
            async with gateway.drain.deadline():
                chunk = await anext(chunks)
        except StopAsyncIteration:
            return
        yield chunk


async def _with_robustness(
    first: dict[str, Any], rest: AsyncIterator[dict[str, Any]], robustness: Robustness, *, voted: bool
) -> AsyncIterator[dict[str, Any]]:
    """Adds ``robustness`` to the last chunk, and to the first one where the answer was voted on.

    A chunk that may be the last (all choices finished, or usage) is held back until the next one arrives. All others
    pass at once, so no token is delayed.
    """
    held: dict[str, Any] | None = None
    if voted:
        first = {**first, "robustness": robustness.model_dump(mode="json")}
    async for chunk in _chain(first, rest):
        if held is not None:
            yield held
        held = chunk if all(choice.get("finish_reason") for choice in chunk.get("choices", [])) else None
        if held is None:
            yield chunk
    last = held or {"object": "chat.completion.chunk", "choices": []}
    yield {**last, "robustness": robustness.model_dump(mode="json")}


async def _chain(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    yield first
    async for chunk in rest:
        yield chunk


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"  # in ASCII: some clients end lines at U+2028 and the like


def _take_images(chat: ChatCompletionRequest, body: dict[str, Any]) -> list[ImageSource]:
    """Replaces the images in ``body`` by placeholders, and returns the images in order.

    Rejects content parts of unknown types, which could be images that bypass smoothing.
    """
    sources: list[ImageSource] = []
    for m, (message, raw) in enumerate(zip(chat.messages, body["messages"], strict=True)):
        refuse_fields(raw, f"messages.{m}.")
        if not isinstance(message.content, list):
            continue
        for p, part in enumerate(message.content):
            path = f"messages.{m}.content.{p}"
            refuse_fields(raw["content"][p], f"{path}.")
            if part.type == "image_url":
                sources.append(ImageSource(_url_of(part, path), f"{path}.image_url.url"))
                raw["content"][p] = {"type": IMAGE_PART, "index": len(sources) - 1}
            elif part.type in TEXT_PARTS:
                if not isinstance(raw["content"][p].get(part.type), str):
                    name = f"{path}.{part.type}"
                    raise invalid(f"{name} is missing; a part of type {part.type} must have it", name)
                if unknown := sorted(raw["content"][p].keys() - TEXT_PART_FIELDS):
                    raise invalid(f"{path}.{unknown[0]} does not belong to a text part", f"{path}.{unknown[0]}")
            else:
                raise invalid(
                    f"{path}.type {part.type!r} is not accepted here; use text or image_url",
                    f"{path}.type",
                    "field_refused" if part.type == "image_embeds" else "invalid_value",
                )
    return sources


def _url_of(part: ContentPart, path: str) -> str:
    extra = set(part.model_extra or {})
    if part.image_url is None or extra or part.text is not None:
        raise invalid(
            f'{path} must have the form {{"type": "image_url", "image_url": {{"url": "data:image/png;base64,…"}}}}',
            path,
        )
    return part.image_url.url
