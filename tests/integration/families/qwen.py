"""Tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Windows are small enough that an image of a few patches has uneven ones, DeepStack has two levels, and vision and text
widths differ, so that confusing any of it cannot go unnoticed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from ..tiny_llava import CONTEXT_LENGTH, TEXT_WIDTH
from .case import CLIP_MEAN, CLIP_STD, NEAREST, FamilyCase, tiny_tokenizer, write_checkpoint

VISION_WIDTH = 96
MAX_TOKENS = 48  # of one image

CHAT_TEMPLATE = """\
{% for message in messages %}{{ message['role'] | upper }}: \
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}\
{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}\
{% endif %}
{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_OLD_NAMES = (("model.visual.", "visual."), ("model.language_model.", "model."), ("lm_head.", "lm_head."))
_NEW_NAMES = (("", ""),)
_MROPE = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
_WIDTHS = {"hidden_size": VISION_WIDTH, "intermediate_size": 2 * VISION_WIDTH, "out_hidden_size": TEXT_WIDTH}

# What differs from one generation to the next.
_GENERATIONS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        "model": Qwen2VLForConditionalGeneration,
        "config": Qwen2VLConfig,
        "classes": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
        "patch": 14,
        "published": _OLD_NAMES,
        "vision": {"embed_dim": VISION_WIDTH, "hidden_size": TEXT_WIDTH, "mlp_ratio": 2},
        "text": {"rope_parameters": _MROPE},
    },
    "qwen2_5_vl": {
        "model": Qwen2_5_VLForConditionalGeneration,
        "config": Qwen2_5_VLConfig,
        "classes": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        "patch": 14,
        "published": _OLD_NAMES,
        "vision": _WIDTHS | {"window_size": 56, "fullatt_block_indexes": [1]},
        "text": {"rope_parameters": _MROPE},
    },
    "qwen3_vl": {
        "model": Qwen3VLForConditionalGeneration,
        "config": Qwen3VLConfig,
        "classes": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
        "patch": 16,
        "published": _NEW_NAMES,
        "vision": _WIDTHS | {"num_position_embeddings": 25, "deepstack_visual_indexes": [0, 1]},
        "text": {"rope_parameters": _MROPE | {"mrope_interleaved": True}, "head_dim": 32},
    },
}


def _builder(model_type: str) -> Callable[..., None]:
    """The function that writes a tiny checkpoint of one generation."""
    chosen = _GENERATIONS[model_type]

    def build(folder: Path, resample: int = NEAREST) -> None:
        tokenizer = tiny_tokenizer(*_TOKENS.values())
        ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in _TOKENS.items()}
        text = {
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,  # heads of 32: vLLM's CPU attention knows only some widths
            "num_key_value_heads": 1,
            "max_position_embeddings": CONTEXT_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **chosen["text"],
        }
        patch = chosen["patch"]
        vision = {"depth": 3, "num_heads": 3, "patch_size": patch, "spatial_merge_size": 2, **chosen["vision"]}
        config = chosen["config"](
            text_config=text, vision_config=vision, tie_word_embeddings=False, dtype="float32", **ids
        )
        processor, video_processor = chosen["classes"]
        image = {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": processor,
            "size": {"shortest_edge": 4 * (2 * patch) ** 2, "longest_edge": MAX_TOKENS * (2 * patch) ** 2},
            "patch_size": patch,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "resample": resample,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        }
        video = {name: value for name, value in image.items() if name != "image_processor_type"}
        write_checkpoint(
            folder,
            config,
            chosen["model"],
            tokenizer,
            chat_template=CHAT_TEMPLATE,
            published=chosen["published"],
            files={
                "preprocessor_config.json": image,
                "video_preprocessor_config.json": video | {"video_processor_type": video_processor},
            },
        )

    return build


def _pixels(inputs: Any) -> torch.Tensor:
    """The image in the processor's patches, which lie in blocks of 2 x 2, each patch twice."""
    _, rows, columns = inputs["image_grid_thw"][0].tolist()
    patches = inputs["pixel_values"].view(rows // 2, columns // 2, 2, 2, 3, 2, -1)
    assert torch.equal(patches[..., 0, :], patches[..., 1, :])
    side = round(patches.shape[-1] ** 0.5)
    blocks = patches[..., 0, :].view(rows // 2, columns // 2, 2, 2, 3, side, side)
    return blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, rows * side, columns * side)


def _embeddings(outputs: Any) -> torch.Tensor:
    """The last block's tokens, DeepStack's behind."""
    levels = [outputs.pooler_output, *(getattr(outputs, "deepstack_features", None) or [])]
    return torch.cat([level[0] if isinstance(level, tuple) else level for level in levels], dim=-1)


def _case(model_type: str) -> FamilyCase:
    return FamilyCase(
        model_type,
        _builder(model_type),
        # Resized up, resized down, exact, more pixels than allowed, one row of tokens, one column, fewer than allowed.
        # Odd sides, as the nearest pixel is a matter of rounding where a place falls between two.
        sizes=((101, 61), (41, 131), (112, 84), (501, 401), (31, 291), (291, 15), (21, 31)),
        reference=_GENERATIONS[model_type]["model"],
        inputs=("pixel_values", "image_grid_thw"),
        pixels=_pixels,
        embeddings=_embeddings,
        mark="<|image_pad|>",
        written=lambda inputs, index, count: "<|image_pad|>" * count,
    )


QWEN2_VL, QWEN2_5_VL, QWEN3_VL = (_case(model_type) for model_type in _GENERATIONS)
