"""What the gateway asks of a language model, wherever it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

ImagePayload = dict[str, NDArray[np.generic]]
# Stands for image `index` in the messages of a ChatRequest.
IMAGE_PART = "smoothed_image"


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A validated request.

    Attributes:
        body: OpenAI's request. Each image is a content part ``{"type": IMAGE_PART, "index": i}``.
        images: Embeddings of image i.
        request_id: Forwarded, so that logs can be joined.
        cache_salt: Keeps prefixes that are cached for one tenant from all others; None for no caller at all.
    """

    body: dict[str, Any]
    images: list[ImagePayload]
    request_id: str
    cache_salt: str | None = None


class LanguageModel(Protocol):
    """Answers chat requests whose images are embeddings.

    Both ways of asking raise :class:`server.errors.ApiError` for what the caller or the language model did wrong.
    """

    async def start(self) -> None:
        """Begins what runs in the background; on the event loop that will also serve requests."""
        ...

    async def admit(self) -> None:
        """Returns if one more request can be taken; asked before anything is spent on it.

        Raises:
            ApiError: 429 while too many wait, 503 while there is no language model.
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
        """Frees what it holds."""
        ...
