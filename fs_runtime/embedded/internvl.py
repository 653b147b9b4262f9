"""InternVL's language model: an image is enclosed in two tokens."""

from __future__ import annotations

from typing_extensions import override

from fs_runtime.embedded.model import EmbeddedModel, Payload


class InternVLModel(EmbeddedModel):
    """See :class:`EmbeddedModel`."""

    @override
    def _image_text(self, image: Payload) -> str:
        return f"<img>{super()._image_text(image)}</img>"
