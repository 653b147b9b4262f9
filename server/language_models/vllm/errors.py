"""What the client is told when a language model server cannot answer."""

from __future__ import annotations

from typing import Any

from server.errors import ApiError


def unavailable() -> ApiError:
    """No server can be reached."""
    return ApiError(
        503,
        "no language model server can be reached; try again later",
        code="language_model_unavailable",
        headers={"retry-after": "5"},
    )


def incompatible() -> ApiError:
    """The servers that can be reached serve another model, or were started in another way. The log says how."""
    return ApiError(
        503,
        "the language model server does not fit the model that this server smooths for; its operator finds the reason "
        "in its log",
        code="language_model_unavailable",
        headers={"retry-after": "60"},
    )


def overloaded() -> ApiError:
    """All servers are full."""
    return ApiError(
        429,
        "all language model servers are busy, and enough requests wait for them; try again later",
        code="overloaded",
        headers={"retry-after": "1"},
    )


def broken_off() -> ApiError:
    """The connection was lost before the answer was complete."""
    return ApiError(502, "the language model server broke off its answer; try again", code="language_model_broken_off")


def failed() -> ApiError:
    """The server made a mistake; what it says of it may be secret."""
    return ApiError(502, "the language model server failed; try again", code="language_model_failed")


def timed_out(what: str) -> ApiError:
    """The server took longer than the operator allows; ``what`` says at what, with the limit."""
    return ApiError(
        504,
        f"the language model server {what}; try again, or ask for fewer tokens",
        code="language_model_timeout",
    )


def from_answer(contents: Any, status: int) -> ApiError:
    """vLLM's error as ours: what the caller did wrong keeps its status and words, the rest is a 502."""
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
