"""Gemma 3's language model: the tokens of an image attend to one another in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import DynamicCache, Gemma3ForConditionalGeneration
from typing_extensions import override

from fs_runtime.embedded.model import EmbeddedModel, Payload


class Gemma3Model(EmbeddedModel):
    """See :class:`EmbeddedModel`."""

    @property
    @override
    def _placeholder(self) -> str:
        return self._spell(self._config.boi_token_index)

    @override
    def _image_text(self, image: Payload) -> str:
        return f"\n\n{self._placeholder}{super()._image_text(image)}{self._spell(self._config.eoi_token_index)}\n\n"

    @override
    def _inputs(self, ids: list[int], embeddings: Tensor, images: Sequence[Payload]) -> dict[str, Any]:
        if not images:
            return {}
        masks = Gemma3ForConditionalGeneration.create_masks_for_generate(
            self._config,
            embeddings,
            attention_mask=None,
            past_key_values=DynamicCache(config=self._config.text_config),  # as the model will make it
            position_ids=None,
            token_type_ids=(self._ids(ids) == self._image_token).long().unsqueeze(0),
            is_first_iteration=True,
        )
        return {"attention_mask": masks}
