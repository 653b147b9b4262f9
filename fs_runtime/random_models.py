"""Checkpoints with the shapes of well-known encoders and random weights, for benchmarks without downloads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModel, CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

# Vision tower (LLaVA-1.5's: CLIP ViT-L/14 at 336 pixels) and the width of the language model behind it.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "clip-vit-l-14-336": (
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
        4096,
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
    vision, width = SHAPES[shape]
    folder.mkdir(parents=True, exist_ok=True)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(hidden_size=width),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    config.save_pretrained(folder)
    side = vision["image_size"]
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
        tower = AutoModel.from_config(config.vision_config)  # type: ignore[no-untyped-call]
        weights = {
            f"vision_tower.vision_model.{name.removeprefix('vision_model.')}": tensor
            for name, tensor in tower.state_dict().items()
        }
        for layer, inputs in ((1, vision["hidden_size"]), (2, width)):
            weights[f"multi_modal_projector.linear_{layer}.weight"] = torch.randn(width, inputs) * inputs**-0.5
            weights[f"multi_modal_projector.linear_{layer}.bias"] = torch.zeros(width)
    save_file(weights, folder / "model.safetensors")
    return folder
