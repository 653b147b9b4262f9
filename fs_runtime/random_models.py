"""Checkpoints with the shapes of well-known encoders and random weights, for benchmarks without downloads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from transformers import AutoModel, CLIPVisionConfig, LlamaConfig, LlavaConfig, PreTrainedConfig, SiglipVisionConfig
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


@dataclass(frozen=True, slots=True)
class Shape:
    """A vision tower, and the width of the language model behind its projector."""

    tower: PreTrainedConfig
    language_width: int
    layer: int
    select: Literal["default", "full"]


SHAPES: dict[str, Shape] = {
    # LLaVA-1.5-7B's: CLIP ViT-L/14 at 336 pixels.
    "clip-vit-l-14-336": Shape(
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
    "siglip-so400m-14-384": Shape(
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
}


def write_random_llava(shape: str, folder: Path) -> Path:
    """Writes the vision part of a LLaVA checkpoint with random weights, without a language model.

    Args:
        shape: One of ``SHAPES``.
        folder: Where to write; made if need be.

    Raises:
        ValueError: The shape is not known.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown shape {shape!r}; choose from {', '.join(SHAPES)}")
    chosen = SHAPES[shape]
    vision, width = chosen.tower, chosen.language_width
    folder.mkdir(parents=True, exist_ok=True)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(hidden_size=width),
        vision_feature_layer=chosen.layer,
        vision_feature_select_strategy=chosen.select,
    )
    config.save_pretrained(folder)
    side = vision.image_size
    processor = {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": 3,
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = AutoModel.from_config(vision)  # type: ignore[no-untyped-call]
        weights = {
            f"vision_tower.vision_model.{name.removeprefix('vision_model.')}": tensor
            for name, tensor in tower.state_dict().items()
        }
        for layer, inputs in ((1, vision.hidden_size), (2, width)):
            weights[f"multi_modal_projector.linear_{layer}.weight"] = torch.randn(width, inputs) * inputs**-0.5
            weights[f"multi_modal_projector.linear_{layer}.bias"] = torch.zeros(width)
    save_file(weights, folder / "model.safetensors")
    return folder
