"""A tiny InternVL: tiles with a thumbnail, pixel shuffle, a Qwen2 behind."""

from pathlib import Path

from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

from ..tiny_llava import CONTEXT_LENGTH, TEXT_WIDTH
from .case import CLIP_MEAN, CLIP_STD, NEAREST, FamilyCase, tiny_tokenizer, write_checkpoint

SIDE, PATCH = 56, 14
VISION_WIDTH = 96
MOST_TILES = 6

CHAT_TEMPLATE = """\
{% for message in messages %}{{ message['role'] | upper }}: \
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}\
{% else %}<IMG_CONTEXT>
{% endif %}{% endfor %}\
{% endif %}
{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def build(folder: Path, resample: int = NEAREST) -> None:
    tokenizer = tiny_tokenizer(
        "<IMG_CONTEXT>",
        "<img>",
        "</img>",
        "<video>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    vision = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 2 * VISION_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": [SIDE, SIDE],
        "patch_size": [PATCH, PATCH],
        "attention_bias": True,
    }
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=(SIDE // PATCH // 2) ** 2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    image = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "processor_class": "InternVLProcessor",
        "crop_to_patches": False,  # as published; the processor cuts tiles even so
        "min_patches": 1,
        "max_patches": MOST_TILES,
        "size": {"height": SIDE, "width": SIDE},
        "resample": resample,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    video = {
        "video_processor_type": "InternVLVideoProcessor",
        "size": {"height": SIDE, "width": SIDE},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    write_checkpoint(
        folder,
        config,
        InternVLForConditionalGeneration,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        published=PUBLISHED,
        files={
            "preprocessor_config.json": image,
            "video_preprocessor_config.json": video,
            "processor_config.json": {
                "processor_class": "InternVLProcessor",
                "image_seq_length": (SIDE // PATCH // 2) ** 2,
            },
        },
    )


INTERNVL = FamilyCase(
    "internvl",
    build,
    # A column and a row of tiles, a single tile, two by two, a row of the most tiles.
    sizes=((101, 61), (41, 131), (41, 41), (151, 171), (21, 201)),
    reference=InternVLForConditionalGeneration,
    pixels=lambda inputs: inputs["pixel_values"],
    options={"crop_to_patches": True},
    embeddings=lambda outputs: outputs.pooler_output.flatten(0, 1),
    mark="<IMG_CONTEXT>",
    written=lambda inputs, index, count: f"<img>{'<IMG_CONTEXT>' * count}</img>",
)
