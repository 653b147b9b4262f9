"""Qwen-VL's language models: an image's tokens have two-dimensional positions, and Qwen3-VL adds features to its first
layers (DeepStack)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from typing_extensions import override

from fs_runtime.embedded.model import EmbeddedModel, Payload, Prompt


class _TextModelWithHead(nn.Module):
    """A text model with its head: transformers has a class with both only together with the vision part."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.model = AutoModel.from_config(text, dtype=torch.float32)  # type: ignore[no-untyped-call]
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """As in transformers' models."""
        return self.lm_head.weight.dtype

    def get_input_embeddings(self) -> nn.Module:
        """As in transformers' models."""
        embed: nn.Module = self.model.get_input_embeddings()
        return embed

    def forward(self, logits_to_keep: int, **inputs: Any) -> CausalLMOutputWithPast:
        out = self.model(**inputs)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, past_key_values=out.past_key_values)


class QwenModel(EmbeddedModel):
    """See :class:`EmbeddedModel`."""

    @override
    def _language_part(self, text: Any) -> nn.Module:
        return _TextModelWithHead(text)

    @override
    def _embeddings(self, ids: list[int], images: Sequence[Payload]) -> Tensor:
        width = self._config.text_config.hidden_size
        return super()._embeddings(ids, [{"image_embeds": image["image_embeds"][:, :width]} for image in images])

    @override
    def _inputs(self, ids: list[int], embeddings: Tensor, images: Sequence[Payload]) -> dict[str, Any]:
        if not images:
            return {}
        image = np.array(ids) == self._image_token
        side = int(self._config.vision_config.spatial_merge_size)
        grids = [tuple(int(count) // side for count in image["image_grid_thw"][1:]) for image in images]
        positions = torch.from_numpy(rotary_positions(image, grids)).to(self._device)
        inputs: dict[str, Any] = {"position_ids": positions.unsqueeze(1)}  # (3, 1, L)
        levels = torch.cat([self._rows(payload["image_embeds"]) for payload in images])
        further = torch.split(levels, self._config.text_config.hidden_size, dim=1)[1:]
        if further:
            inputs["visual_pos_masks"] = torch.from_numpy(image).to(self._device).unsqueeze(0)
            inputs["deepstack_visual_embeds"] = list(further)
        return inputs

    @override
    def _next_inputs(self, prompt: Prompt, made: int) -> dict[str, Any]:
        positions = prompt.inputs.get("position_ids")
        if positions is None:
            return {}
        return {"position_ids": (positions.max() + made).expand(3, positions.shape[1], 1)}

    @override
    def _together(self, inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        together = super()._together(inputs)
        if "position_ids" in together:  # (3, B, L)
            together["position_ids"] = torch.cat([own["position_ids"] for own in inputs], dim=1)
        return together


def rotary_positions(image: NDArray[np.bool_], grids: Sequence[tuple[int, ...]]) -> NDArray[np.int64]:
    """Positions of a prompt's tokens in time, height and width (M-RoPE, arXiv 2409.12191, section 2.1).

    A text token's three positions are equal: one more than the largest before it. An image's tokens share their time
    position, from which their rows and columns are counted.

    Args:
        image: ``(L,)`` whether each token belongs to an image.
        grids: Rows and columns of each image's tokens.

    Returns:
        ``(3, L)``.
    """
    positions = np.empty((3, len(image)), np.int64)
    token, position = 0, 0
    remaining = iter(grids)
    while token < len(image):
        if image[token]:
            rows, columns = next(remaining)
            count = rows * columns
            row, column = np.indices((rows, columns)).reshape(2, -1)
            positions[:, token : token + count] = position + np.stack([np.zeros_like(row), row, column])
            token, position = token + count, position + max(rows, columns)
        else:
            positions[:, token] = position
            token, position = token + 1, position + 1
    return positions
