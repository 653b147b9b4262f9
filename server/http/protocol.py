"""Limits on the headers of a request, which uvicorn with httptools lacks."""

from __future__ import annotations

import asyncio
import json
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_BYTES = 64 * 1024
_MAX_HEADERS = 100
_MESSAGE = f"the header section has more than {_MAX_BYTES} bytes or {_MAX_HEADERS} headers"
_BODY = json.dumps(
    {"error": {"message": _MESSAGE, "type": "invalid_request_error", "param": None, "code": "headers_too_large"}}
).encode()
_ANSWER = b"\r\n".join(
    [
        b"HTTP/1.1 431 Request Header Fields Too Large",
        b"content-type: application/json",
        b"content-length: %d" % len(_BODY),
        b"connection: close",
        b"",
        _BODY,
    ]
)

log = logging.getLogger("server")


class _HeadersTooLargeError(Exception):
    """Raised inside the parser, which wraps it in an error of its own."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's connection, with limits on the size, number and arrival time of request headers.

    The parser copies an unfinished header again with each piece, so an endless one would stall all other requests.
    The same limits hold for trailers and chunk extensions.
    """

    header_timeout = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it so
        """Starts the timer for the first request's headers."""
        super().connection_made(transport)
        self._unread = 0  # bytes since the headers were complete, or since the last bytes of a body
        self._header_bytes = 0
        self._between_requests = True
        self._header_timer: asyncio.TimerHandle | None = None
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer."""
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds bytes to the parser, within the limits."""
        if self._between_requests and self._header_timer is None:
            self._start_header_timer()
        self._unread += len(data)
        super().data_received(data)
        if self._unread > _MAX_BYTES and not self.transport.is_closing():
            self._refuse()

    def send_400_response(self, msg: str) -> None:
        """Answers 431 instead of 400 if the parser stopped because of the limits."""
        if self._is_too_large():
            self._refuse()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """Called when a request begins."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Called with a part of the request's path."""
        self._header_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called with a header or trailer."""
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)
        if self._is_too_large():
            raise _HeadersTooLargeError

    def on_headers_complete(self) -> None:
        """Called when the headers are complete."""
        self._unread = 0
        self._between_requests = False
        self._stop_header_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Called with a part of the body; :class:`BodyLimitMiddleware` limits bodies."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Called when the request is complete; its answer may still be in progress."""
        self._unread = 0
        self._between_requests = True
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Called for a request to upgrade the protocol, which is answered as an ordinary request without a warning."""

    def _is_too_large(self) -> bool:
        return self._header_bytes > _MAX_BYTES or len(self.headers or ()) > _MAX_HEADERS

    def _refuse(self) -> None:
        log.warning(_MESSAGE)
        if not self._is_answering():  # else the client would take it for a part of the current answer
            self.transport.write(_ANSWER)
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.header_timeout, self._on_header_timeout)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_header_timeout(self) -> None:
        self._header_timer = None
        if self._is_answering():  # of the previous request; the next one has time until it ends
            self._start_header_timer()
        else:
            self.transport.close()
