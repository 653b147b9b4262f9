"""Parts of the OpenAPI document that FastAPI cannot generate: bodies that routes read themselves, shared errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, TypeAdapter

from server.api.schemas import CertifyRequest, ChatCompletionRequest, ErrorBody
from server.models.answer_estimate import AnswerEstimate

_REFERENCE = "#/components/schemas/{model}"
# Error responses of every route that takes images.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "Invalid field, or an image that cannot be read.",
        401: "Missing or wrong key.",
        403: "Not allowed on this server.",
        404: "Unknown model.",
        408: "The body did not arrive in time.",
        413: "Body or image too large, or too costly to decode.",
        415: "Not an image in a supported format.",
        422: "Certified similarity below min_similarity, or an answer that is not certified as required.",
        429: "Overloaded, or a rate limit is used up; Retry-After says when to try again.",
        500: "Internal error.",
        502: "The language model server, or the server of a remote image, failed.",
        503: "Temporarily unavailable.",
        504: "Smoothing, or another server, timed out.",
    }.items()
}


def reference(model: type[Any]) -> dict[str, str]:
    """Names the schema of a model."""
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def request_body(model: type[BaseModel], example: dict[str, Any] | None = None) -> dict[str, Any]:
    """Describes a body that a route reads and validates itself."""
    content: dict[str, Any] = {"schema": reference(model)}
    if example is not None:
        content["example"] = example
    return {"required": True, "content": {"application/json": content}}


def install_openapi(app: FastAPI) -> None:
    """Adds the schemas that routes refer to by :func:`reference`."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document["components"]["schemas"]
        for model in (ChatCompletionRequest, CertifyRequest, AnswerEstimate):
            schema = TypeAdapter[Any](model).json_schema(ref_template=_REFERENCE)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        return document

    app.openapi = openapi  # type: ignore[method-assign]
