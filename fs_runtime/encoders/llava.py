"""LLaVA-1.5 and similar models: a CLIP or SigLIP tower at a fixed resolution, and an MLP projector."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.activations import ACT2FN
from typing_extensions import override

from fs_runtime.encoders.base import Grid, PreparedImage, VisionEncoder
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError, fingerprint, load_weights
from fs_runtime.encoders.parts import (
    checked_embeddings,
    fixed_size,
    frozen,
    materialise_position_ids,
    mean_and_std,
    per_channel,
    processor_config,
    special_token_text,
    to_numpy,
)
from fs_runtime.options import Stage
from fs_runtime.preprocessing.resize import ResizeCrop
from fs_runtime.preprocessing.tiling import Tiling

_TOWERS = ("clip_vision_model", "siglip_vision_model")
# On disk: `vision_tower.vision_model.…`, with or without a leading `model.`, with or without `vision_model.`.
_TOWER_KEY = re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)$")
_PROJECTOR_KEY = re.compile(r"^(?:model\.)?multi_modal_projector\.(.+)$")


class _Projector(nn.Module):
    """Two linear layers with an activation between (LLaVA-1.5; Liu et al. 2023, section 3)."""

    def __init__(self, config: PreTrainedConfig, width: int) -> None:
        super().__init__()
        hidden = config.text_config.hidden_size
        bias = getattr(config, "multimodal_projector_bias", True)
        self.linear_1 = nn.Linear(width, hidden, bias=bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear_2(self.act(self.linear_1(features)))
        return out


def _layer_indices(selected: int | list[int], layers: int) -> list[int]:
    """Indices into the hidden states (0 is the embedding) of the selected layers, as non-negative numbers."""
    indices = [selected] if isinstance(selected, int) else list(selected)
    resolved = [index if index >= 0 else layers + 1 + index for index in indices]
    if not all(0 <= index <= layers for index in resolved):
        raise CheckpointError(f"vision_feature_layer={selected} does not exist in a tower of {layers} layers")
    return resolved


class LlavaEncoder(VisionEncoder):
    """Vision tower and projector of a LLaVA checkpoint.

    Layers above the one that the projector reads are neither loaded nor run.

    Args:
        checkpoint: Where the weights are.
        device: Where to put them.
        dtype: Arithmetic of tower and projector.

    Raises:
        CheckpointError: The checkpoint is not of this family, or is incomplete.
    """

    family = "llava"
    tower: nn.Module
    _constant_names: tuple[str, ...] = ()  # names of constant embeddings that belong to the vision part

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        raw = checkpoint.config()
        config = AutoConfig.for_model(**raw)
        vision = config.vision_config
        if vision.model_type not in _TOWERS:
            raise CheckpointError(f"a LLaVA with a {vision.model_type} tower is not supported; use {_TOWERS}")
        self.device, self.dtype = device, dtype
        processor = processor_config(checkpoint)
        mean, std = mean_and_std(processor)
        try:
            self._geometry = self._read_geometry(processor, config)
        except ValueError as error:
            raise CheckpointError(f"{checkpoint.source}: {error}") from error
        self.preprocessing = {**dataclasses.asdict(self._geometry), "mean": mean, "std": std}
        side = vision.image_size // vision.patch_size
        self._grid = (side, side)
        self._size = (vision.image_size, vision.image_size)

        self._layers = _layer_indices(config.vision_feature_layer, vision.num_hidden_layers)
        self._single = isinstance(config.vision_feature_layer, int)
        vision.num_hidden_layers = max(self._layers)
        self._drop_class_token = config.vision_feature_select_strategy == "default"
        has_class_token = vision.model_type == "clip_vision_model"
        if hasattr(vision, "vision_use_head"):
            vision.vision_use_head = False  # SigLIP's pooling head is not used
        with torch.device("meta"):
            tower = AutoModel.from_config(  # type: ignore[no-untyped-call]
                vision, dtype=torch.float32, attn_implementation="sdpa"
            )
            projector = _Projector(config, vision.hidden_size * len(self._layers))
            width = config.text_config.hidden_size
            constants = nn.ParameterDict({name: torch.empty(width) for name in self._constant_names})
        # The selected hidden states come before this norm, so it need not be computed.
        inner = getattr(tower, "vision_model", tower)
        inner.post_layernorm = nn.Identity()
        prefix = "" if inner is tower else "vision_model."

        def tower_name(key: str) -> str | None:
            match = _TOWER_KEY.match(key)
            return prefix + match.group(1) if match else None

        def projector_name(key: str) -> str | None:
            match = _PROJECTOR_KEY.match(key)
            return match.group(1) if match else None

        def constant_name(key: str) -> str | None:
            name = key.removeprefix("model.")
            return name if name in self._constant_names else None

        load_weights(tower, checkpoint.tensors(tower_name), "vision tower")
        load_weights(projector, checkpoint.tensors(projector_name), "projector")
        load_weights(constants, checkpoint.tensors(constant_name), "vision part")
        materialise_position_ids(tower)
        self.fingerprint = fingerprint(
            {"config": raw, "geometry": repr(self._geometry), "mean": mean, "std": std}, inner, projector, constants
        )
        self.tower = frozen(tower, device, dtype)
        self._projector = frozen(projector, device, dtype)
        self._constants = dict(frozen(constants, device, dtype).named_parameters())
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self.tokens = side * side + int(has_class_token) - int(self._drop_class_token)
        self.embedding_size = self.language_width = int(width)
        self.control_tokens = (special_token_text(checkpoint, config.image_token_index, "<image>"),)

    def _read_geometry(self, processor: dict[str, Any], config: PreTrainedConfig) -> ResizeCrop | Tiling:
        """The resize that the image processor's configuration describes; ValueError if it is not supported."""
        return ResizeCrop.from_processor_config(processor)

    @override
    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        return fixed_size(self._geometry(image), self._size, self._grid)

    @override
    def encode(self, x: Tensor) -> Tensor:
        pixels = ((x.float() - self._mean) / self._std).to(self.dtype)
        if self._single:
            features: Tensor = self.tower(pixel_values=pixels).last_hidden_state  # (B, 1 + T, D)
        else:
            states = self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states
            features = torch.cat([states[index] for index in self._layers], dim=-1)
        return features[:, 1:] if self._drop_class_token else features

    @override
    def project(self, features: Tensor, grid: Grid) -> Tensor:
        projected: Tensor = self._projector(features.to(self.dtype))
        return projected

    @override
    def token_grids(self, grid: Grid, stage: Stage) -> tuple[tuple[int, int], ...]:
        picture = (grid[0], grid[1])
        return (picture,) if self.tokens == grid[0] * grid[1] else ((1, 1), picture)  # the class token comes first

    @override
    def payload(self, embeddings: Tensor, image: PreparedImage) -> dict[str, NDArray[np.generic]]:
        return {"image_embeds": to_numpy(checked_embeddings(embeddings, self.tokens, self.embedding_size))}
