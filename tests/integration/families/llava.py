"""A tiny LLaVA-1.5: a CLIP tower at one resolution, resized by the shortest edge and cropped."""

from pathlib import Path

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from ..tiny_llava import CHAT_TEMPLATE
from .case import CLIP_MEAN, CLIP_STD, NEAREST, FamilyCase, tiny_tokenizer, tiny_widths, write_checkpoint
from .llava_next import PUBLISHED

SIDE, PATCH = 56, 14


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
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**tiny_widths(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
        tie_word_embeddings=False,
        dtype="float32",
    )
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": resample,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": PATCH,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
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


LLAVA = FamilyCase(
    "llava", build, sizes=((101, 61), (41, 131), (56, 56), (57, 201), (91, 15)), reference=LlavaForConditionalGeneration
)
