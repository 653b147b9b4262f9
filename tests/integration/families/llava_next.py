"""A tiny LLaVA-NeXT: CLIP tiles, newline tokens."""

from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from ..tiny_llava import CHAT_TEMPLATE
from .case import CLIP_MEAN, CLIP_STD, NEAREST, FamilyCase, tiny_tokenizer, tiny_widths, write_checkpoint

SIDE, PATCH = 56, 14
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]
PUBLISHED = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.image_newline", "image_newline"),
)


def build(folder: Path, resample: int = NEAREST) -> None:
    tokenizer = tiny_tokenizer("<image>")
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        projection_dim=48,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=LlamaConfig(**tiny_widths(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    image_processor = {
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
        "aspect_ratio_setting": "anyres",
        "image_grid_pinpoints": PINPOINTS,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": resample,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    processor = {
        "processor_class": "LlavaNextProcessor",
        "image_token": "<image>",
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    write_checkpoint(
        folder,
        config,
        LlavaNextForConditionalGeneration,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        published=PUBLISHED,
        files={"preprocessor_config.json": image_processor, "processor_config.json": processor},
    )


LLAVA_NEXT = FamilyCase(
    "llava_next",
    build,
    # 2 x 2 with padding beside, a row of three, 2 x 2 filled, a row with padding, and all columns cut off as padding.
    sizes=((100, 60), (40, 130), (112, 112), (57, 200), (90, 4)),
    reference=LlavaNextForConditionalGeneration,
    inputs=("pixel_values", "image_sizes"),
    constants=("image_newline",),
)
