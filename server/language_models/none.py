"""The back end without a language model, for gateways that only certify images."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from server.errors import ApiError
from server.language_models.base import ChatRequest, CopyAnswer, CopySource


def no_language_model() -> ApiError:
    """The 404 for chat requests."""
    return ApiError(
        404,
        "this model is served without a language model, to certify images only: send them to /v1/certify",
        code="no_language_model",
        param="model",
    )


class NoLanguageModel:
    """Rejects all chat requests."""

    async def start(self) -> None:
        """Does nothing."""

    async def admit(self) -> None:
        """Always raises :func:`no_language_model`."""
        raise no_language_model()

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Always raises :func:`no_language_model`."""
        raise no_language_model()

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """Always raises :func:`no_language_model`."""
        raise no_language_model()
        yield {}

    async def answers(
        self, request: ChatRequest, copies: CopySource, choices: tuple[str, ...] | None
    ) -> AsyncGenerator[CopyAnswer | ApiError, None]:
        """Always raises :func:`no_language_model`."""
        raise no_language_model()
        yield no_language_model()

    async def ready(self) -> bool:
        """Always true: there is nothing to wait for."""
        return True

    async def close(self) -> None:
        """Does nothing."""
