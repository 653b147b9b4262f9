"""Idefics3's and SmolVLM's language model: the prompt names the row and column of each tile."""

from __future__ import annotations

from typing_extensions import override

from fs_runtime.embedded.model import EmbeddedModel, Payload


class Idefics3Model(EmbeddedModel):
    """See :class:`EmbeddedModel`."""

    @override
    def _image_text(self, image: Payload) -> str:
        down, across = (int(count) for count in image["tiles"])
        tiles = down * across
        fence = "<fake_token_around_image>"
        tokens = self._image_token_text * (len(image["image_embeds"]) // (tiles + int(tiles > 1)))
        whole = f"{fence}<global-img>{tokens}{fence}"
        if tiles == 1:
            return whole
        rows = (
            "".join(f"{fence}<row_{row}_col_{column}>{tokens}" for column in range(1, across + 1))
            for row in range(1, down + 1)
        )
        return "".join(f"{row}\n" for row in rows) + f"\n{whole}"
