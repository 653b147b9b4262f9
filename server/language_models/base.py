"""The interface that language model back ends implement."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import ApiError

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
        tenant: Whose request it is: votes of tenants take turns.
    """

    body: dict[str, Any]
    images: list[ImagePayload]
    request_id: str
    cache_salt: str | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class CopyAnswer:
    """The answer to one noisy copy of a request's images.

    Attributes:
        completion: As an OpenAI chat completion.
    """

    completion: dict[str, Any]

    @property
    def text(self) -> str:
        """What it says."""
        return str(self.completion["choices"][0]["message"].get("content") or "")

    @property
    def finished(self) -> bool:
        """Whether the model ended it, rather than a limit of its length."""
        return bool(self.completion["choices"][0].get("finish_reason") == "stop")


class CopySource(Protocol):
    """Noisy copies of a request's images, in the order in which they were drawn."""

    async def take(self, most: int) -> list[list[ImagePayload]]:
        """The next copies that are there, at least one, each with all images in order; none at the end."""
        ...


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

    def answers(
        self, request: ChatRequest, copies: CopySource, choices: tuple[str, ...] | None
    ) -> AsyncGenerator[CopyAnswer | ApiError, None]:
        """The answer to each copy by itself, or why there is none, in the order of the copies.

        Args:
            request: As for each of them, but for its images; greedy.
            copies: The images.
            choices: Texts of which each answer must be one; None for any.
        """
        ...

    async def ready(self) -> bool:
        """Whether it can answer now."""
        ...

    async def close(self) -> None:
        """Stops background tasks and closes connections."""
        ...
