"""Errors in OpenAI's shape: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "certificate_error",
    429: "rate_limit_error",
}
_MAX_PROBLEMS = 20
_MAX_NAME = 80


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status.
        message: What is wrong and what to do about it, for the person who reads it.
        code: Machine-readable name of the error.
        param: The field at fault, as a path into the request.
        headers: Additional headers, for example ``Retry-After``.
        extra: Further top-level objects of the body, for example ``robustness``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}
        self.extra = extra or {}

    def __reduce__(self) -> tuple[Callable[..., ApiError], tuple[int, str]]:
        """Lets other processes raise it: an exception by itself pickles its message alone."""
        rest = functools.partial(type(self), code=self.code, param=self.param, headers=self.headers, extra=self.extra)
        return rest, (self.status, self.message)

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = _TYPES.get(self.status, "server_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
            **self.extra,
        }

    def response(self) -> JSONResponse:
        """The HTTP response."""
        return JSONResponse(self.body(), status_code=self.status, headers=self.headers)


def shutting_down() -> ApiError:
    """The 503 of a server that is shutting down."""
    return ApiError(
        503, "the server is shutting down; try another one", code="shutting_down", headers={"retry-after": "5"}
    )


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """A 400 that names the field."""
    return ApiError(400, message, code=code, param=param)


def from_validation(error: ValidationError) -> ApiError:
    """A 400 that names the invalid field and counts the others (of the first 20 problems)."""
    problems = error.errors(include_url=False, include_input=False)[:_MAX_PROBLEMS]
    # If a value may have several types, the deepest location belongs to the type that matched best.
    worst = max(problems, key=lambda problem: len(problem["loc"]))
    path = _path(worst["loc"])
    others = {other for problem in problems if not path.startswith(other := _path(problem["loc"]))}
    message = worst["msg"].removeprefix("Value error, ")
    if worst["type"] == "model_type":
        message = "must be a JSON object"
    if worst["type"] == "extra_forbidden":
        message = "unknown or unsupported field; check its spelling, or leave it out"
    more = f" ({len(others)} further fields are invalid)" if others else ""
    code = {"extra_forbidden": "unknown_parameter", "missing": "missing_parameter"}.get(worst["type"], "invalid_value")
    return ApiError(400, f"{path or 'body'}: {message}{more}", code=code, param=path or None)


def _path(location: tuple[int | str, ...]) -> str:
    """The field's path, without the parts such as `str` and `list[…]` that name members of a union."""
    return field_path(part for part in location if part != "str" and "[" not in str(part))


def field_path(keys: Iterable[int | str]) -> str:
    """The path of a field in a request, such as ``messages.0.content``; very long names are cut."""
    return ".".join(map(short_name, keys))


def short_name(name: int | str) -> str:
    """A field name from a request, cut to 80 characters for error messages."""
    name = str(name)
    return name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"


def internal_error() -> ApiError:
    """The 500 of an unexpected exception; its cause goes to the log only."""
    return ApiError(500, "internal error; the server's log has the cause", code="internal_error")


def install_handlers(app: FastAPI) -> None:
    """Turns all exceptions into errors of OpenAI's shape, and stores them for the middleware that counts errors."""

    def answer(request: Request, error: ApiError) -> JSONResponse:
        request.state.error = error
        return error.response()

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> JSONResponse:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "unknown_url", 405: "method_not_allowed"}
        message = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code == 404:
            message += (
                "; a client's base URL ends in /v1, answers come from POST /v1/chat/completions, and /openapi.json "
                "lists the rest"
            )
        api_error = ApiError(error.status_code, message, code=codes.get(error.status_code, "http_error"))
        api_error.headers = dict(error.headers or {})
        return answer(request, api_error)

    @app.exception_handler(Exception)
    async def _unexpected(request: Request, error: Exception) -> JSONResponse:
        return internal_error().response()
