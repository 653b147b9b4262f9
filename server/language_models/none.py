"""No language model: images are certified, and nothing is answered about them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from server.errors import ApiError
from server.language_models.base import ChatRequest


def no_language_model() -> ApiError:
    """What chat requests are answered with."""
    return ApiError(
        404,
        "this model is served without a language model, to certify images only: send them to /v1/certify",
        code="no_language_model",
        param="model",
    )


class NoLanguageModel:
    """Stands where a language model would."""

    async def start(self) -> None:
        """Nothing runs."""

    async def admit(self) -> None:
        """Raises, always."""
        raise no_language_model()

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """Raises, always."""
        raise no_language_model()

    async def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """Raises, always."""
        raise no_language_model()
        yield {}

    async def ready(self) -> bool:
        """Nothing is to be waited for."""
        return True

    async def close(self) -> None:
        """Nothing is held."""
