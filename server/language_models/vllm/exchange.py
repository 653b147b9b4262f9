"""One request at one vLLM server, from sending it to the end of the answer."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from server.concurrency import TimeoutGroup
from server.errors import ApiError
from server.language_models.vllm import errors as upstream_errors
from server.language_models.vllm.pool import Server
from server.language_models.vllm.retries import Outcome

_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(frozen=True, slots=True)
class PhaseLimits:
    """Timeouts of each phase, in seconds. The HTTP client has the one for connecting.

    Attributes:
        first_token: From sending the request to the first event of a stream.
        next_token: From one event of a stream to the next.
        total: From the first attempt to the end of the answer. For an answer that is not streamed it is the only
            limit, since vLLM sends nothing before the answer is complete.
    """

    first_token: float
    next_token: float
    total: float


class ExchangeError(Exception):
    """The exchange failed: ``outcome`` tells the pool why, ``api_error`` is the response for the client."""

    def __init__(self, outcome: Outcome, api_error: ApiError) -> None:
        super().__init__(api_error.message)
        self.outcome = outcome
        self.api_error = api_error


class Exchange:
    """Sends one request and reads its answer.

    Args:
        client: HTTP client.
        server: The server to send the request to.
        limits: Timeouts of each phase.
        deadline: When the answer must be complete, on the loop's clock.
        timeouts: Group of the server's pending requests, which is expired when the server becomes unhealthy.
    """

    def __init__(
        self, client: httpx.AsyncClient, server: Server, limits: PhaseLimits, deadline: float, timeouts: TimeoutGroup
    ) -> None:
        self.server = server
        self.started = time.monotonic()
        self.first: dict[str, Any] = {}
        self._client = client
        self._limits = limits
        self._deadline = deadline
        self._timeouts = timeouts
        self._response: httpx.Response | None = None
        self._events: AsyncIterator[dict[str, Any]] | None = None

    async def served_model(self) -> str:
        """The first model that the server lists.

        Raises:
            ExchangeError: It lists none.
        """
        limit = min(self._now() + self._limits.first_token, self._deadline)
        with self._translate_errors("did not list its models in time"):
            async with self._timeouts.timeout_at(limit):
                response = await self._client.get(f"{self.server.url}/v1/models")
        if response.status_code != httpx.codes.OK:
            raise _failure({}, response.status_code)
        try:
            return str(_object(response.content)["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise ExchangeError(Outcome.FAILED, upstream_errors.failed()) from error

    async def begin(self, content: bytes, request_id: str, *, streamed: bool) -> None:
        """Sends the request and waits for ``first``: the first event of a stream, or the whole answer.

        Raises:
            ExchangeError: The server did not begin to answer.
        """
        limit = min(self._now() + self._limits.first_token, self._deadline) if streamed else self._deadline
        with self._translate_errors("sent no token in time"):
            async with self._timeouts.timeout_at(limit):
                request = self._client.build_request(
                    "POST",
                    f"{self.server.url}/v1/chat/completions",
                    content=content,
                    headers={"content-type": "application/json", "x-request-id": request_id},
                )
                self._response = await self._client.send(request, stream=True)
                if self._response.status_code != httpx.codes.OK:
                    raise await _refusal(self._response)
                if streamed:
                    self._events = _events(self._response)
                    begun = await anext(self._events, None)
                    if begun is None:  # the stream ended without an event
                        raise ExchangeError(Outcome.BROKEN_OFF, upstream_errors.broken_off())
                    self.first = begun
                else:
                    await self._response.aread()
                    self.first = _object(self._response.content)

    async def remaining_events(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the events of a stream after the first one.

        Raises:
            ExchangeError: The stream broke off, or no event came in time.
        """
        assert self._events is not None, "only streams have further events"  # noqa: S101
        while True:
            with self._translate_errors("stopped in the middle of its answer"):
                try:
                    async with asyncio.timeout_at(min(self._now() + self._limits.next_token, self._deadline)):
                        event = await anext(self._events)
                except StopAsyncIteration:
                    return
            yield event

    async def close(self) -> None:
        """Closes the connection of the answer; vLLM then stops generating an answer that is not complete."""
        if self._response is not None:
            await self._response.aclose()

    @contextmanager
    def _translate_errors(self, silence: str) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ExchangeError(Outcome.UNREACHABLE, upstream_errors.unavailable()) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            over = self._now() >= self._deadline
            what = f"took longer than the {self._limits.total:g} s that an answer may take" if over else silence
            raise ExchangeError(Outcome.TIMED_OUT, upstream_errors.timed_out(what)) from error
        except httpx.HTTPError as error:
            raise ExchangeError(Outcome.BROKEN_OFF, upstream_errors.broken_off()) from error

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The server-sent events of an answer up to ``[DONE]``."""
    async for line in _lines(response.aiter_bytes()):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        event = _object(data)
        if "error" in event:
            code = event["error"].get("code") if isinstance(event["error"], dict) else None
            raise _failure(event, code if isinstance(code, int) else 502)
        yield event
    raise ExchangeError(Outcome.BROKEN_OFF, upstream_errors.broken_off())


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Splits at CR, LF and CR LF only, as event streams demand: texts may hold other line ends, such as U+2028."""
    rest = b""
    async for piece in pieces:
        *lines, rest = _LINE_END.split(rest + piece)  # a CR LF cut in two yields an additional empty line
        for line in lines:
            yield line
    yield rest


def _object(data: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ExchangeError(Outcome.FAILED, upstream_errors.failed()) from error
    if not isinstance(value, dict):
        raise ExchangeError(Outcome.FAILED, upstream_errors.failed())
    return value


async def _refusal(response: httpx.Response) -> ExchangeError:
    await response.aread()
    try:
        contents = response.json()
    except ValueError:
        contents = {}
    return _failure(contents, response.status_code)


def _failure(contents: Any, status: int) -> ExchangeError:
    answer = upstream_errors.from_answer(contents, status)
    if answer.status < 500:
        return ExchangeError(Outcome.REFUSED, answer)
    return ExchangeError(Outcome.BUSY if answer.status == 503 else Outcome.FAILED, answer)
