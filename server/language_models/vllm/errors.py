"""Error responses for clients when a vLLM server cannot answer."""

from __future__ import annotations

from typing import Any

from server.errors import ApiError


def unavailable() -> ApiError:
    """503: no server can be reached."""
    return ApiError(
        503,
        "no language model server can be reached; try again later",
        code="language_model_unavailable",
        headers={"retry-after": "5"},
    )


def incompatible() -> ApiError:
    """503: the reachable servers serve another model or lack a required flag. The log says why."""
    return ApiError(
        503,
        "the language model server does not fit this server's model; the reason is in this server's log",
        code="language_model_unavailable",
        headers={"retry-after": "60"},
    )


def overloaded() -> ApiError:
    """429: all servers are full."""
    return ApiError(
        429,
        "all language model servers are busy, and too many requests are waiting; try again later",
        code="overloaded",
        headers={"retry-after": "1"},
    )


def broken_off() -> ApiError:
    """502: the connection was lost before the answer was complete."""
    return ApiError(502, "the language model server broke off its answer; try again", code="language_model_broken_off")


def failed() -> ApiError:
    """502: the server failed. Its own message is left out, since it may hold secrets."""
    return ApiError(502, "the language model server failed; try again", code="language_model_failed")


def timed_out(what: str) -> ApiError:
    """504: the server exceeded a timeout. ``what`` completes the sentence, for example "sent no token in time"."""
    return ApiError(
        504,
        f"the language model server {what}; try again, or ask for fewer tokens",
        code="language_model_timeout",
    )


def from_answer(contents: Any, status: int) -> ApiError:
    """Maps a vLLM error to ours: client errors keep their message, overload becomes a 503, all else a 502."""
    inner = contents.get("error", contents) if isinstance(contents, dict) else {}
    if not isinstance(inner, dict):
        inner = {}
    message = inner.get("message")
    if status in (400, 404, 413, 422) and isinstance(message, str):
        return ApiError(
            413 if status == 413 else 400,
            f"the language model refused the request: {message}",
            code="language_model_refused",
            param=inner.get("param") if isinstance(inner.get("param"), str) else None,
        )
    if status in (429, 503):
        return ApiError(
            503,
            "the language model server is overloaded; try again later",
            code="language_model_unavailable",
            headers={"retry-after": "5"},
        )
    return failed()
