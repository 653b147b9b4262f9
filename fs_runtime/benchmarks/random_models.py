"""Checkpoints with the shapes of well-known encoders and random weights, for benchmarks without downloads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    SiglipVisionConfig,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


@dataclass(frozen=True, slots=True)
class LlavaShape:
    """A vision tower of fixed resolution, and the width of the language model behind its projector."""

    tower: PreTrainedConfig
    language_width: int
    layer: int
    select: Literal["default", "full"]

    def config(self) -> PreTrainedConfig:
        """``config.json``."""
        return LlavaConfig(
            vision_config=self.tower,
            text_config=LlamaConfig(hidden_size=self.language_width),
            vision_feature_layer=self.layer,
            vision_feature_select_strategy=self.select,
        )

    def processor(self) -> dict[str, Any]:
        """``preprocessor_config.json``."""
        side = self.tower.image_size
        return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}, "resample": 3}

    def weights(self) -> dict[str, Tensor]:
        """Tower and projector."""
        tower, width = AutoModel.from_config(self.tower), self.language_width  # type: ignore[no-untyped-call]
        weights = {
            f"vision_tower.vision_model.{name.removeprefix('vision_model.')}": tensor
            for name, tensor in tower.state_dict().items()
        }
        for layer, inputs in ((1, self.tower.hidden_size), (2, width)):
            weights[f"multi_modal_projector.linear_{layer}.weight"] = torch.randn(width, inputs) * inputs**-0.5
            weights[f"multi_modal_projector.linear_{layer}.bias"] = torch.zeros(width)
        return weights


@dataclass(frozen=True, slots=True)
class QwenShape:
    """Qwen2.5-VL's vision transformer and merger, which read pictures of any size."""

    vision: dict[str, Any]

    def config(self) -> PreTrainedConfig:
        """``config.json``; only the text model's width matters, which is the merger's output width."""
        width = self.vision["out_hidden_size"]
        text = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": width // 128}
        return Qwen2_5_VLConfig(vision_config=self.vision, text_config=text)

    def processor(self) -> dict[str, Any]:
        """``preprocessor_config.json``."""
        return {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280, "resample": 3}

    def weights(self) -> dict[str, Tensor]:
        """Tower with merger."""
        tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(self.config().vision_config)  # type: ignore[no-untyped-call]
        return {f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}


SHAPES: dict[str, LlavaShape | QwenShape] = {
    # LLaVA-1.5-7B's: CLIP ViT-L/14 at 336 pixels.
    "clip-vit-l-14-336": LlavaShape(
        CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        ),
        language_width=4096,
        layer=-2,
        select="default",
    ),
    # SigLIP's shape-optimised one of 400 million parameters, at 384 pixels.
    "siglip-so400m-14-384": LlavaShape(
        SiglipVisionConfig(
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
            image_size=384,
            patch_size=14,
        ),
        language_width=4096,
        layer=-1,
        select="full",
    ),
    # Qwen2.5-VL-7B's: windows of 8 x 8 patches in all blocks but four (arXiv 2502.13923, table 1).
    "qwen2.5-vl-7b": QwenShape(
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": 3584,
        }
    ),
}


def write_random_model(shape: str, folder: Path) -> Path:
    """Writes the vision part of a checkpoint with random weights, without a language model.

    Args:
        shape: One of ``SHAPES``.
        folder: Created if it is missing.

    Raises:
        ValueError: The shape is unknown.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; choose from {', '.join(SHAPES)}")
    chosen = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    chosen.config().save_pretrained(folder)
    processor = {**chosen.processor(), "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(chosen.weights(), folder / "model.safetensors")
    return folder
