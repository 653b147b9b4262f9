"""Reads checkpoints of guided diffusion (Dhariwal and Nichol 2021, arXiv 2105.05233) into diffusers' U-Net."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_LEVELS = 6
_HEAD = 64  # channels of one attention head
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def alphas_cumprod() -> Tensor:
    """``(1000,)`` ᾱ of its noise schedule, which is linear in β."""
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


def is_guided_diffusion(weights: Mapping[str, Any]) -> bool:
    """Whether these are weights of its U-Net at 256 pixels without classes."""
    return "input_blocks.0.0.weight" in weights and "label_emb.weight" not in weights


def unet_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of diffusers' ``UNet2DModel`` for these weights.

    The layout is that of the models of 256 pixels: six levels, ResNet blocks that shrink and grow, heads of 64
    channels, and attention where the weights have it.

    Raises:
        ValueError: They have another layout.
    """
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("input_blocks."))
    layers, rest = divmod(blocks, _LEVELS)
    if rest or layers < 2:
        raise ValueError(f"it has {blocks} input blocks, and not a multiple of {_LEVELS} as the models of 256 pixels")
    layers -= 1
    attends = [f"input_blocks.{1 + level * (layers + 1)}.1.qkv.weight" in weights for level in range(_LEVELS)]
    widths = [
        weights[f"input_blocks.{1 + level * (layers + 1)}.0.out_layers.3.weight"].shape[0] for level in range(_LEVELS)
    ]
    return {
        "sample_size": 256,
        "in_channels": weights["input_blocks.0.0.weight"].shape[1],
        "out_channels": weights["out.2.weight"].shape[0],
        "layers_per_block": layers,
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attends],
        "up_block_types": ["AttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in reversed(attends)],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": _HEAD,
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift",
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def renamed(weights: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights under diffusers' names; ``layers`` is ``layers_per_block`` of :func:`unet_config`."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        module, _, kind = name.rpartition(".")  # kind: weight, bias
        if module in _ENDS:
            found[f"{_ENDS[module]}.{kind}"] = tensor
        else:
            found.update(_block(module, kind, tensor, layers, weights))
    return found


def _block(
    module: str, kind: str, tensor: Tensor, layers: int, weights: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """The weight of one layer inside a block."""
    part, *rest = module.split(".")
    if part == "middle_block":
        place = int(rest.pop(0))
        new = "mid_block.attentions.0" if place == 1 else f"mid_block.resnets.{place // 2}"
    else:
        number, place = int(rest.pop(0)), int(rest.pop(0))
        level, layer = divmod(number - (part == "input_blocks"), layers + 1)
        side = "down_blocks" if part == "input_blocks" else "up_blocks"
        attends = f"{part}.{number}.{place}.qkv.weight" in weights
        if attends:
            new = f"{side}.{level}.attentions.{layer}"
        elif side == "down_blocks" and layer == layers:
            new = f"{side}.{level}.downsamplers.0"
        else:
            new = f"{side}.{level}.upsamplers.0" if place else f"{side}.{level}.resnets.{layer}"
    inner = ".".join(rest)
    if inner in _RESNET:
        yield f"{new}.{_RESNET[inner]}.{kind}", tensor
    elif inner == "norm":
        yield f"{new}.group_norm.{kind}", tensor
    elif inner == "proj_out":
        yield f"{new}.to_out.0.{kind}", tensor.flatten(1) if kind == "weight" else tensor
    elif inner == "qkv":
        # Query, key and value of the first head, then those of the second, and so on.
        by_head = tensor.view(-1, 3, _HEAD, *tensor.shape[1:2])  # (heads, 3, 64[, C])
        for index, letter in enumerate("qkv"):
            yield f"{new}.to_{letter}.{kind}", by_head[:, index].flatten(0, 1)
    else:
        raise ValueError(f"it has a weight of another layout: {module}.{kind}")
