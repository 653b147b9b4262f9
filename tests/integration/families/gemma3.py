"""A tiny Gemma 3: SigLIP, pooled tokens, sliding windows shorter than a prompt."""

from pathlib import Path

from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

from .case import NEAREST, FamilyCase, tiny_tokenizer, tiny_widths, write_checkpoint

SIDE, PATCH = 56, 14
TOKENS = 4
BILINEAR = 2

CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: \
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}\
{% else %}<start_of_image>{% endif %}{% endfor %}
{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""

PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def build(folder: Path, resample: int = NEAREST) -> None:
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tiny_tokenizer(*marks.values(), **{name: marks[name] for name in ("boi_token", "eoi_token")})
    text = tiny_widths(tokenizer) | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
    vision = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**text),
        vision_config=vision,
        mm_tokens_per_image=TOKENS,
        boi_token_index=tokenizer.convert_tokens_to_ids(marks["boi_token"]),
        eoi_token_index=tokenizer.convert_tokens_to_ids(marks["eoi_token"]),
        image_token_index=tokenizer.convert_tokens_to_ids(marks["image_token"]),
        dtype="float32",
    )
    image_processor = {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": TOKENS,
        "resample": resample,
        "rescale_factor": 1 / 255,
        "size": {"height": SIDE, "width": SIDE},
    }
    write_checkpoint(
        folder,
        config,
        Gemma3ForConditionalGeneration,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        published=PUBLISHED,
        files={
            "preprocessor_config.json": image_processor,
            "processor_config.json": {"processor_class": "Gemma3Processor", "image_seq_length": TOKENS},
        },
    )


GEMMA3 = FamilyCase(
    "gemma3",
    build,
    sizes=((101, 61), (41, 131), (56, 56), (15, 201)),
    reference=Gemma3ForConditionalGeneration,
    filter=BILINEAR,
)
