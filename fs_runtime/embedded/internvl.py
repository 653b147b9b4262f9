"""InternVL's language model: an image stands between two tokens."""

from __future__ import annotations

from typing_extensions import override

from fs_runtime.embedded.model import EmbeddedModel, Payload


class InternVLModel(EmbeddedModel):
    """See :class:`EmbeddedModel`."""

    @override
    def _written(self, image: Payload) -> str:
        return f"<img>{super()._written(image)}</img>"
