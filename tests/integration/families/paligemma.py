"""A tiny PaliGemma: a SigLIP tower, one linear map, a Gemma behind."""

from pathlib import Path

from transformers import GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration, SiglipVisionConfig

from ..tiny_llava import TEXT_WIDTH
from .case import NEAREST, FamilyCase, tiny_tokenizer, tiny_widths, write_checkpoint

SIDE, PATCH = 56, 14

# Published checkpoints have none; this is the one that vLLM then takes.
CHAT_TEMPLATE = "{%- for message in messages -%}{{- message['content'] -}}{%- endfor -%}"

PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)


def build(folder: Path, resample: int = NEAREST) -> None:
    tokenizer = tiny_tokenizer("<image>")
    tokenizer.add_bos_token = False
    vision = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=TEXT_WIDTH,
        vision_use_head=False,
    )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=GemmaConfig(**tiny_widths(tokenizer), head_dim=32, num_image_tokens=(SIDE // PATCH) ** 2),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=TEXT_WIDTH,
        hidden_size=TEXT_WIDTH,
        dtype="float32",
    )
    image_processor = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "PaliGemmaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": (SIDE // PATCH) ** 2,
    }
    write_checkpoint(
        folder,
        config,
        PaliGemmaForConditionalGeneration,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        published=PUBLISHED,
        files={
            "preprocessor_config.json": image_processor,
            "processor_config.json": {"processor_class": "PaliGemmaProcessor"},
        },
    )


PALIGEMMA = FamilyCase(
    "paligemma",
    build,
    sizes=((100, 61), (41, 131), (56, 56), (157, 201), (91, 5)),
    reference=PaliGemmaForConditionalGeneration,
    several=False,
)
