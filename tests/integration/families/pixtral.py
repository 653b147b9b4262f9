"""A tiny Pixtral in transformers' format: a LLaVA whose tower takes any resolution."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration, MistralConfig, PixtralVisionConfig

from .case import CLIP_MEAN, CLIP_STD, NEAREST, FamilyCase, tiny_tokenizer, tiny_widths, write_checkpoint

PATCH, LONGEST = 16, 112

CHAT_TEMPLATE = """\
{% for message in messages %}{{ message['role'] | upper }}: \
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}\
{% else %}[IMG]{% endif %}{% endfor %}
{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def build(folder: Path, resample: int = NEAREST) -> None:
    tokenizer = tiny_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    vision = PixtralVisionConfig(
        hidden_size=96,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=LONGEST,
        patch_size=PATCH,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=MistralConfig(**tiny_widths(tokenizer), head_dim=32, tie_word_embeddings=False),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        dtype="float32",
    )
    image_processor = {
        "image_processor_type": "PixtralImageProcessor",
        "processor_class": "PixtralProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "patch_size": {"height": PATCH, "width": PATCH},
        "resample": resample,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": LONGEST},
    }
    processor = {
        "processor_class": "PixtralProcessor",
        "image_token": "[IMG]",
        "image_break_token": "[IMG_BREAK]",
        "image_end_token": "[IMG_END]",
        "patch_size": PATCH,
    }
    write_checkpoint(
        folder,
        config,
        LlavaForConditionalGeneration,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        published=PUBLISHED,
        files={"preprocessor_config.json": image_processor, "processor_config.json": processor},
    )


def _written(inputs: Any, index: int, count: int) -> str:
    rows, columns = (int(side) // PATCH for side in inputs["image_sizes"][index])
    return ("[IMG]" * columns + "[IMG_BREAK]") * (rows - 1) + "[IMG]" * columns + "[IMG_END]"


def _pixels(inputs: Any) -> torch.Tensor:
    height, width = inputs["image_sizes"][0]
    pixels: torch.Tensor = inputs["pixel_values"][0, :, :height, :width]
    return pixels


PIXTRAL = FamilyCase(
    "pixtral",
    build,
    # Smaller than allowed and not whole patches, larger, exact, a row of patches, a column.
    sizes=((101, 61), (41, 131), (112, 64), (15, 201), (301, 9)),
    reference=LlavaForConditionalGeneration,
    inputs=("pixel_values", "image_sizes"),
    pixels=_pixels,
    written=_written,
    mark="[IMG]",
)
