"""Limits of the header section of a request, which uvicorn with httptools does not have."""

from __future__ import annotations

import asyncio
import json
import logging

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_BYTES = 64 * 1024
_MOST_HEADERS = 100
_MESSAGE = f"the header section has more than {_MOST_BYTES} bytes or {_MOST_HEADERS} headers"
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
    """Stops the parser, which hands it on as an error of its own."""


class HttpProtocol(HttpToolsProtocol):
    """One connection: uvicorn's, with limits of bytes, headers and time until a request's headers are complete.

    The parser puts an unfinished header together anew at each piece, so one without end would stall all requests.
    What follows the headers and is no body is limited likewise: trailers, and the extensions of chunks.
    """

    header_timeout = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn narrows it so
        """Waits for the first request."""
        super().connection_made(transport)
        self._unread = 0  # bytes since the last ones that completed the headers or belonged to a body
        self._header_bytes = 0
        self._between_requests = True
        self._clock: asyncio.TimerHandle | None = None
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Hands bytes to the parser."""
        if self._between_requests and self._clock is None:
            self._start_clock()
        self._unread += len(data)
        super().data_received(data)
        if self._unread > _MOST_BYTES and not self.transport.is_closing():
            self._refuse()

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser has refused."""
        if self._is_too_large():
            self._refuse()
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request's path."""
        self._header_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header or trailer."""
        self._header_bytes += len(name) + len(value)
        super().on_header(name, value)
        if self._is_too_large():
            raise _HeadersTooLargeError

    def on_headers_complete(self) -> None:
        """The request may be served."""
        self._unread = 0
        self._between_requests = False
        self._stop_clock()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body; its limits are the application's."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole, its answer may still be under way."""
        self._unread = 0
        self._between_requests = True
        super().on_message_complete()

    def _unsupported_upgrade_warning(self) -> None:
        """Called for a request that asks for another protocol, which is answered as if it had not."""

    def _is_too_large(self) -> bool:
        return self._header_bytes > _MOST_BYTES or len(self.headers or ()) > _MOST_HEADERS

    def _refuse(self) -> None:
        log.warning(_MESSAGE)
        if not self._is_answering():  # or the client would take it for a part of the answer that is under way
            self.transport.write(_ANSWER)
        self.transport.close()

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(self.header_timeout, self._close_late)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _close_late(self) -> None:
        self._clock = None
        if self._is_answering():  # the former request's; what waits behind it has time until then
            self._start_clock()
        else:
            self.transport.close()
