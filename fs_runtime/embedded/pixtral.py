"""Pixtral's language model: a token ends each row of an image's tokens, and another token ends the image."""

from __future__ import annotations

from typing_extensions import override

from fs_runtime.embedded.model import EmbeddedModel, Payload


class PixtralModel(EmbeddedModel):
    """See :class:`EmbeddedModel`."""

    @override
    def _image_text(self, image: Payload) -> str:
        rows, columns = (int(count) for count in image["grid"])
        return "[IMG_BREAK]".join([self._image_token_text * columns] * rows) + "[IMG_END]"
