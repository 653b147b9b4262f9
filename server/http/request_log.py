"""Middleware for request ids, the access log and request metrics."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import internal_error
from server.observability.metrics import Metrics
from server.observability.tracing import UNTRACED

REQUEST_ID_HEADER = "x-request-id"
_REQUEST_ID = re.compile(r"[\w.\-:]{1,128}", re.ASCII)  # it goes on to the language model as a header

log = structlog.get_logger("server")


class RequestIdMiddleware:
    """Takes a valid ``x-request-id`` or makes one, returns it, and stores it in ``scope["state"]``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        await self.app(scope, receive, send_with_id)


class AccessLogMiddleware:
    """Counts and logs each request by route template, never by raw path or body."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.requests_in_flight.inc()
        try:
            await self.app(scope, receive, send_and_note)
        except Exception:  # an outer handler answers 500
            scope["state"]["error"] = internal_error()
            raise
        finally:
            self.metrics.requests_in_flight.dec()
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - start
            self.metrics.requests.labels(route=route, status=str(status)).inc()
            self.metrics.request_seconds.labels(route=route).observe(seconds)
            error = scope["state"].get("error")
            if error is not None:
                self.metrics.count_error(error)
            if route not in UNTRACED:
                code = {"error": error.code} if error is not None else {}
                log.info(
                    "request", method=scope["method"], route=route, status=status, seconds=round(seconds, 4), **code
                )
