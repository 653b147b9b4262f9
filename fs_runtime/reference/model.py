"""The reference MLLM, a LLaVA of two million parameters: architecture, and saving in the usual layout.

`save_reference` writes the classic layout on disk, `vision_tower.vision_model.…` and `language_model.model.…`,
which both transformers and vLLM load; transformers 5 itself writes a layout that vLLM cannot load.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from .conversations import IMAGE_SIZE, PATCH_SIZE
from .tokenizer import BEGIN, END, IMAGE, PAD, SPECIAL_TOKENS, VOCABULARY_SIZE, chat_template

MAX_LENGTH = 2048
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)

# Prefixes of names in transformers, and those on disk. The first matching prefix is replaced.
_NAMES_ON_DISK = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}


def reference_config(
    *,
    vision_layers: int = 5,
    text_layers: int = 4,
    width: int = 128,
    vocabulary: int = VOCABULARY_SIZE,
) -> LlavaConfig:
    """Configure the architecture. The defaults are the model that ships."""
    heads = width // 32  # 32 is the smallest head width of vLLM's CPU attention
    special = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    return LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=vision_layers,
            num_attention_heads=heads,
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            projection_dim=width,
            hidden_act="gelu",
        ),
        text_config=LlamaConfig(
            architectures=["LlamaForCausalLM"],  # vLLM finds the language model by this name
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=text_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
            max_position_embeddings=MAX_LENGTH,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=special[BEGIN],
            eos_token_id=special[END],
            pad_token_id=special[PAD],
        ),
        image_token_index=special[IMAGE],
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",  # all patches, without the class token
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        architectures=["LlavaForConditionalGeneration"],
    )


def build_reference(seed: int, config: LlavaConfig | None = None) -> LlavaForConditionalGeneration:
    """Build the model with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config or reference_config())


def save_reference(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model, tokenizer and processor to a folder in the Hugging Face format, weights in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name_on_disk(name): value.detach().to("cpu", torch.float32).contiguous()
        for name, value in model.state_dict().items()
        if not name.endswith("position_ids")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_diff_dict()
    config.pop("transformers_version", None)
    config["dtype"] = "float32"
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", _generation_config(model.config.text_config))
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "preprocessor_config.json", _image_processor_config())
    _write_json(folder / "processor_config.json", _processor_config())
    (folder / "chat_template.jinja").write_text(chat_template(), encoding="utf-8")


def load_weights(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Load the weights that `save_reference` wrote into a model of the same architecture."""
    saved = load_file(folder / "model.safetensors")
    names = [name for name in model.state_dict() if not name.endswith("position_ids")]
    model.load_state_dict({name: saved[name_on_disk(name)] for name in names}, strict=False)


def name_on_disk(name: str) -> str:
    """Translate a parameter's name in transformers to the classic LLaVA name."""
    for prefix, replacement in _NAMES_ON_DISK.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    raise ValueError(f"{name!r} is not a parameter of a LLaVA model")


def _generation_config(text: Any) -> dict[str, Any]:
    return {
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_id,
        "pad_token_id": text.pad_token_id,
        "do_sample": False,
        "max_new_tokens": 64,
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "extra_special_tokens": {"image_token": IMAGE},
        "model_max_length": MAX_LENGTH,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "processor_class": "LlavaProcessor",
    }


def _image_processor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
    }


def _processor_config() -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "patch_size": PATCH_SIZE,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,  # the class token, which the strategy then drops
        "image_token": IMAGE,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
