"""Llama 3.2 Vision's language model: some of its layers read images by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import MllamaForCausalLM
from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask
from typing_extensions import override

from fs_runtime.embedded.model import EmbeddedModel, Payload, Prompt


class MllamaModel(EmbeddedModel):
    """See :class:`EmbeddedModel`. The prompt keeps the image token; cross-attention reads the embeddings."""

    @override
    def _language_part(self, text: Any) -> nn.Module:
        language: nn.Module = MllamaForCausalLM._from_config(text, dtype=torch.float32)  # type: ignore[no-untyped-call]
        return language

    @override
    def _image_text(self, image: Payload) -> str:
        return self._image_token_text

    @override
    def _embeddings(self, ids: list[int], images: Sequence[Payload]) -> Tensor:
        sequence: Tensor = self._embed(self._ids(ids))
        return sequence.unsqueeze(0)

    @override
    def _inputs(self, ids: list[int], embeddings: Tensor, images: Sequence[Payload]) -> dict[str, Any]:
        if not images:
            return {}
        states = torch.cat([self._rows(image["image_embeds"]) for image in images])
        reads = torch.zeros(len(ids), 1 + len(states), dtype=torch.bool, device=self._device)
        first = 1
        for (start, end), image in zip(get_cross_attention_token_mask(ids, self._image_token), images, strict=True):
            stop = first + len(image["image_embeds"])
            reads[start : None if end == -1 else end, first:stop] = True
            first = stop
        # A token before all images attends to an added state of zeros only, whose value is zero. transformers lets such
        # tokens attend to everything, black tiles included; Meta's own code multiplies their output by 0.
        some = reads.any(-1, keepdim=True)
        reads[:, :1] = ~some
        mask = torch.zeros_like(reads, dtype=embeddings.dtype).masked_fill(~reads, torch.finfo(embeddings.dtype).min)
        return {
            "cross_attention_states": functional.pad(states, (0, 0, 1, 0)).unsqueeze(0),
            "cross_attention_mask": mask[None, None],  # (1, 1, L, 1 + states)
            "full_text_row_masked_out_mask": some.to(mask)[None, None],
        }

    @override
    def _next_inputs(self, prompt: Prompt, made: int) -> dict[str, Any]:
        """The cache holds the states; a new token attends to those that the prompt's last token attends to."""
        names = ("cross_attention_mask", "full_text_row_masked_out_mask")
        return {name: prompt.inputs[name][:, :, -1:] for name in names if name in prompt.inputs}
