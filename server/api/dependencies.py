"""Dependencies of routes: the gateway's parts, authentication, reading bodies, and client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from fastapi import Request
from pydantic import BaseModel, ValidationError

from fs_runtime.receipts import SigningKey
from server.access.directory import AccessDirectory
from server.api.json_values import parse_json
from server.errors import from_validation, invalid
from server.http.drain import Drain
from server.models.directory import ModelDirectory
from server.models.served import ServedModel
from server.models.smoothing import Caller
from server.observability.metrics import Metrics
from server.rate_limits.limiter import RateLimiter
from server.settings.gateway import Settings

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_LARGE_BODY = 65_536
# Large bodies have threads of their own, so that they do not delay the work of other requests.
_LARGE_BODIES = ThreadPoolExecutor(2, "large-body")


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts of a running gateway."""

    settings: Settings
    access: AccessDirectory
    limiter: RateLimiter
    models: ModelDirectory
    metrics: Metrics
    receipt_key: SigningKey | None
    drain: Drain


def gateway_of(request: Request) -> Gateway:
    """The gateway that serves this request."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def request_id_of(request: Request) -> str:
    """The id that the middleware gave this request."""
    return str(request.state.request_id)


async def authenticate(request: Request) -> None:
    """Identifies the tenant of a request, for :func:`caller_of`, rate limits and logs.

    Raises:
        ApiError: 401.
    """
    tenant = gateway_of(request).access.authenticate(request.headers.getlist("authorization"))
    structlog.contextvars.bind_contextvars(tenant=tenant.name)
    request.state.caller = Caller(tenant, request_id_of(request))


async def admit(request: Request) -> None:
    """Authenticates a request and charges it to the tenant's limit of requests, even if it fails later.

    Raises:
        ApiError: 401, or 429.
    """
    await authenticate(request)
    caller = caller_of(request)
    charge = await gateway_of(request).limiter.charge(caller.tenant, {"requests": 1})
    caller.headers.update(charge.headers)


def caller_of(request: Request) -> Caller:
    """Returns the caller that :func:`authenticate` has identified."""
    caller: Caller = request.state.caller
    return caller


@contextmanager
def model_for(request: Request, name: str | None) -> Iterator[ServedModel]:
    """Yields the model that a request names, and keeps it loaded until the block ends.

    Raises:
        ApiError: As :meth:`ModelDirectory.find`.
    """
    model = gateway_of(request).models.find(name, caller_of(request).tenant)
    structlog.contextvars.bind_contextvars(model=model.name)
    model.metrics.count_request(request.scope["route"].path)
    with model.in_use():
        yield model


async def read_body(request: Request, schema: type[M]) -> tuple[M, dict[str, Any]]:
    """Reads and validates a JSON body.

    Returns:
        The validated request, and the body as it was sent.

    Raises:
        ApiError: 400, naming the field at fault.
    """
    async with gateway_of(request).drain.deadline():
        raw = await request.body()

    def parse() -> tuple[M, dict[str, Any]]:  # on a thread, since bodies can have megabytes
        data = parse_json(raw)
        if not isinstance(data, dict):
            raise invalid("the body must be a JSON object", code="invalid_json")
        try:
            return schema.model_validate(data), data
        except ValidationError as error:
            raise from_validation(error) from None

    pool = _LARGE_BODIES if len(raw) > _LARGE_BODY else None
    return await asyncio.get_running_loop().run_in_executor(pool, parse)


class ClientDisconnectedError(Exception):
    """The client closed the connection; there is nobody to answer."""


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Awaits ``work``, and cancels it if the client disconnects or a shutdown's time is over.

    Raises:
        ClientDisconnectedError: The client disconnected first.
        ApiError: 503, the gateway is shutting down.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(request))
    try:
        async with gateway_of(request).drain.deadline():
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnectedError
        return task.result()
    finally:
        watch.cancel()
        task.cancel()


async def _disconnected(request: Request) -> None:
    """Returns when the client has disconnected. The body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
