"""An answer without the image: the language model is told, in its place, that there was one."""

from __future__ import annotations

from typing import Any

from server.language_models.base import IMAGE_PART, ImagePayload
from server.robustness.answer import Robustness

NOTICE = (
    "[The server withheld the image that was here, because its certified robustness, or what smoothing leaves of it, "
    "is below what is required. You have not seen it. Say so, and do not guess what it shows.]"
)


def withhold(body: dict[str, Any], payloads: list[ImagePayload], robustness: Robustness) -> list[ImagePayload]:
    """Replaces withheld images in ``body`` by the notice, and numbers the others anew.

    Args:
        body: OpenAI's request with a part ``{"type": IMAGE_PART, "index": i}`` for image i.
        payloads: Of all images.
        robustness: Says which are withheld.

    Returns:
        Payloads of the images that the language model may see.
    """
    seen = [index for index, image in enumerate(robustness.images) if not image.withheld]
    numbers = {index: number for number, index in enumerate(seen)}
    for message in body["messages"]:
        if isinstance(message.get("content"), list):
            message["content"] = [
                _notice_or(part, numbers) if part["type"] == IMAGE_PART else part for part in message["content"]
            ]
    return [payloads[index] for index in seen]


def _notice_or(part: dict[str, Any], numbers: dict[int, int]) -> dict[str, Any]:
    if part["index"] in numbers:
        return {"type": IMAGE_PART, "index": numbers[part["index"]]}
    return {"type": "text", "text": NOTICE}
