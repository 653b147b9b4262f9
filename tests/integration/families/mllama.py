"""A tiny Llama 3.2 Vision: up to four tiles, open gates, cross-attention in two layers."""

from pathlib import Path
from typing import Any

import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration
from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

from .case import NEAREST, FamilyCase, tiny_tokenizer, tiny_widths, write_checkpoint

SIDE, PATCH, TILES = 56, 14, 4
VISION_WIDTH = 32
BILINEAR = 2
CANVASES = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: \
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}\
{% else %}<|image|>{% endif %}{% endfor %}
{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_model.", "vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def build(folder: Path, resample: int = NEAREST) -> None:
    tokenizer = tiny_tokenizer("<|image|>")
    text = tiny_widths(tokenizer) | {
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "cross_attention_layers": [1, 3],
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    }
    vision = MllamaVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=2 * VISION_WIDTH,
        num_hidden_layers=3,
        num_global_layers=2,
        attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
        max_num_tiles=TILES,
        intermediate_layers_indices=[0, 2],
        vision_output_dim=3 * VISION_WIDTH,
        supported_aspect_ratios=CANVASES,
    )
    config = MllamaConfig(
        text_config=MllamaTextConfig(**text),
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
        dtype="float32",
    )
    image_processor = {
        "image_processor_type": "MllamaImageProcessor",
        "processor_class": "MllamaProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_image_tiles": TILES,
        "resample": resample,
        "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }
    write_checkpoint(
        folder,
        config,
        MllamaForConditionalGeneration,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        published=PUBLISHED,
        files={
            "preprocessor_config.json": image_processor,
            "processor_config.json": {"processor_class": "MllamaProcessor"},
        },
    )


def _canvas(inputs: Any) -> list[int]:
    return CANVASES[int(inputs["aspect_ratio_ids"][0, 0]) - 1]


def _pixels(inputs: Any) -> torch.Tensor:
    down, across = _canvas(inputs)
    tiles = inputs["pixel_values"][0, 0, : down * across].view(down, across, 3, SIDE, SIDE)
    return tiles.permute(2, 0, 3, 1, 4).reshape(3, down * SIDE, across * SIDE)


def _image_features(model: Any, inputs: Any) -> torch.Tensor:
    down, across = _canvas(inputs)
    states = model.model.vision_model(inputs["pixel_values"], inputs["aspect_ratio_ids"], inputs["aspect_ratio_mask"])
    projected: torch.Tensor = model.model.multi_modal_projector(states.last_hidden_state)
    return projected[0, 0, : down * across].flatten(0, 1)


def _mend(model: Any, inputs: Any) -> None:
    """Tokens before the first image read none, as in Meta's own code; transformers forgets that in the attention."""
    reads = (inputs["cross_attention_mask"] > 0).flatten(2).any(-1, keepdim=True).float()  # (1, L, 1)

    def multiply(module: Any, arguments: Any, output: tuple[torch.Tensor, Any]) -> tuple[torch.Tensor, Any]:
        return output[0] * reads[:, -output[0].shape[1] :], output[1]

    for layer in model.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            layer.cross_attn.register_forward_hook(multiply)


MLLAMA = FamilyCase(
    "mllama",
    build,
    # Two by two, a row of three, one tile, a row of four, a column of four.
    sizes=((101, 61), (41, 131), (55, 41), (21, 201), (401, 9)),
    reference=MllamaForConditionalGeneration,
    inputs=("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask"),
    pixels=_pixels,
    image_features=_image_features,
    embeddings=lambda features: features,
    filter=BILINEAR,
    mend=_mend,
)
