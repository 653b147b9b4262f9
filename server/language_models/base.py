"""The interface that language model back ends implement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ImagePayload = dict[str, NDArray[np.generic]]
# Type of the content part that refers to image `index` of a ChatRequest.
IMAGE_PART = "smoothed_image"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A validated request.

    Attributes:
        body: The request in OpenAI's format. Each image is a content part ``{"type": IMAGE_PART, "index": i}``.
        images: Embeddings of each image.
        request_id: Forwarded to the back end, to correlate logs.
        cache_salt: Separates the prefix cache of each tenant; None without a tenant.
    """

    body: dict[str, Any]
    images: list[ImagePayload]
    request_id: str
    cache_salt: str | None = None


class LanguageModel(Protocol):
    """Answers chat requests whose images are embeddings.

    ``complete`` and ``stream`` raise :class:`server.errors.ApiError` for errors of the client or the language model.
    """

    async def start(self) -> None:
        """Starts background tasks, on the event loop that serves requests."""
        ...

    async def admit(self) -> None:
        """Returns if another request can be taken. Called before any work is done for it.

        Raises:
            ApiError: 429 if too many requests wait, 503 if no language model is available.
        """
        ...

    async def complete(self, request: ChatRequest) -> dict[str, Any]:
        """The whole answer, as an OpenAI chat completion."""
        ...

    def stream(self, request: ChatRequest) -> AsyncIterator[dict[str, Any]]:
        """The answer as OpenAI chat completion chunks, without the closing ``[DONE]``."""
        ...

    async def ready(self) -> bool:
        """Whether it can answer now."""
        ...

    async def close(self) -> None:
        """Stops background tasks and closes connections."""
        ...
