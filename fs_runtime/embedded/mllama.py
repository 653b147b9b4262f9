"""Llama 3.2 Vision's language model: some of its layers read images by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MllamaForCausalLM
from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask
from typing_extensions import override

from fs_runtime.embedded.model import EmbeddedModel, Payload, Prompt


class MllamaModel(EmbeddedModel):
    """See :class:`EmbeddedModel`. The image token stays a token of the prompt; the embeddings are read beside it."""

    @override
    def _language_part(self, text: Any) -> nn.Module:
        return MllamaForCausalLM._from_config(text, dtype=torch.float32)

    @override
    def _written(self, image: Payload) -> str:
        return self._spelled

    @override
    def _embeddings(self, ids: list[int], images: Sequence[Payload]) -> Tensor:
        sequence: Tensor = self._embed(self._ids(ids))
        return sequence.unsqueeze(0)

    @override
    def _inputs(self, ids: list[int], embeddings: Tensor, images: Sequence[Payload]) -> dict[str, Any]:
        if not images:
            return {}
        states = [self._rows(image["image_embeds"]) for image in images]
        lowest = torch.finfo(embeddings.dtype).min
        mask = torch.full((len(ids), sum(map(len, states))), lowest, device=self._device, dtype=embeddings.dtype)
        first = 0
        for (start, end), state in zip(get_cross_attention_token_mask(ids, self._image_token), states, strict=True):
            mask[start : None if end == -1 else end, first : first + len(state)] = 0
            first += len(state)
        # A token before all images reads none. Softmax over nothing is no number, so its row is open and its outcome
        # is multiplied by 0.
        reads = (mask == 0).any(-1, keepdim=True).to(mask)
        return {
            "cross_attention_states": torch.cat(states).unsqueeze(0),
            "cross_attention_mask": (mask * reads)[None, None],  # (1, 1, L, states)
            "full_text_row_masked_out_mask": reads[None, None],
        }

    @override
    def _next_inputs(self, prompt: Prompt, made: int) -> dict[str, Any]:
        """The states are in the cache; each further token reads what the prompt's last one does."""
        names = ("cross_attention_mask", "full_text_row_masked_out_mask")
        return {name: prompt.inputs[name][:, :, -1:] for name in names if name in prompt.inputs}
