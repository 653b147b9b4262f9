"""A tiny LLaVA-OneVision: SigLIP tiles, pooled where there are many, in front of a Qwen2."""

from pathlib import Path

from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from ..tiny_llava import CHAT_TEMPLATE
from .case import NEAREST, FamilyCase, tiny_tokenizer, tiny_widths, write_checkpoint
from .llava_next import PUBLISHED

SIDE, PATCH = 42, 14
PINPOINTS = [[SIDE * rows, SIDE * columns] for rows in range(1, 7) for columns in range(1, 7)]


def build(folder: Path, resample: int = NEAREST) -> None:
    tokenizer = tiny_tokenizer("<image>", "<video>")
    vision = SiglipVisionConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIDE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**tiny_widths(tokenizer), tie_word_embeddings=False),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_9",
        tie_word_embeddings=False,
        dtype="float32",
    )
    image_processor = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "image_grid_pinpoints": PINPOINTS,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": SIDE, "width": SIDE},
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_pad": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    processor = {
        "processor_class": "LlavaOnevisionProcessor",
        "image_token": "<image>",
        "video_token": "<video>",
        "num_image_tokens": (SIDE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
    }
    video_processor = image_processor | {"video_processor_type": "LlavaOnevisionVideoProcessor"}
    video_processor = {name: video_processor[name] for name in video_processor if name != "image_processor_type"}
    write_checkpoint(
        folder,
        config,
        LlavaOnevisionForConditionalGeneration,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        published=PUBLISHED,
        files={
            "preprocessor_config.json": image_processor,
            "video_preprocessor_config.json": video_processor,
            "processor_config.json": processor,
        },
    )


LLAVA_ONEVISION = FamilyCase(
    "llava_onevision",
    build,
    # Grids of 2 x 3 and 1 x 4, 4 x 4 and 6 x 3 that are pooled, a strip. No size makes two pixels equally near, where
    # nearest-pixel resizing depends on the library.
    sizes=((71, 85), (41, 150), (161, 149), (250, 121), (90, 5)),
    reference=LlavaOnevisionForConditionalGeneration,
    inputs=("pixel_values", "image_sizes"),
    constants=("image_newline",),
    mark="<image>",
    written=lambda inputs, index, count: "<image>" * count,
)
