"""A tiny LLaVA-1.5-shaped checkpoint with random weights, in the layout of the published ones.

The proportions are those of ``llava-hf/llava-1.5-7b-hf``, shrunk: a CLIP tower whose second-to-last layer is
used without the class token, a projector of two layers, a Llama, shortest edge and centre crop, weights in
several shards with an index. Vision and text widths differ, so that confusing them cannot go unnoticed.
"""

import json
import math
import string
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

IMAGE_SIZE = 56
PATCH_SIZE = 14
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
VISION_WIDTH = 48
TEXT_WIDTH = 64
CONTEXT_LENGTH = 512

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>"]
CHARACTERS = string.digits + string.ascii_letters + string.punctuation + " \n"

# As in LLaVA 1.5: images first, then the text, in each turn.
CHAT_TEMPLATE = """\
{% for message in messages %}{{ message['role'] | upper }}: \
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}<image>
{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}\
{% endif %}\
{{ eos_token + '\n' if message['role'] == 'assistant' else ' ' }}{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def build_tiny_llava(folder: Path, *, seed: int = 0, with_vision: bool = True) -> Path:
    """Write the checkpoint of ``seed`` into ``folder`` and return the folder.

    transformers and vLLM both load it. Without vision, the weights of tower and projector are left out, which only
    an embeddings-only vLLM accepts; the language model is the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = character_tokenizer()
    config = _config(tokenizer)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    _write_processor(folder)
    weights = _random_weights(config, seed)
    if not with_vision:
        weights = {name: tensor for name, tensor in weights.items() if name.startswith("language_model.")}
    _write_weights(folder, weights)
    return folder


def character_tokenizer(image_tokens: Sequence[str] = ("<image>",), **extra: str) -> PreTrainedTokenizerFast:
    """One token per printable character: every answer is clean text, however random the model."""
    special = [*SPECIAL_TOKENS, *image_tokens]
    vocabulary = {token: i for i, token in enumerate([*special, *CHARACTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": image_tokens[0], **extra},
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def _config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=2 * VISION_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=VISION_WIDTH,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,  # heads of 32: vLLM's CPU attention knows only some widths
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        architectures=["LlavaForConditionalGeneration"],
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        dtype="float32",
    )


def _write_processor(folder: Path) -> None:
    image_processor = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE_SIZE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": PATCH_SIZE,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor, indent=2))
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2))


def _random_weights(config: LlavaConfig, seed: int) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    shapes = {_published_name(name): parameter.shape for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    return {name: random_weight(name, shape, generator) for name, shape in sorted(shapes.items())}


def _write_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    # As in the published checkpoints, the first shard holds vision and the beginning of the language model.
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    second = ("language_model.model.layers.1.", "language_model.model.layers.2.", "language_model.lm_head.")
    file_of = {name: files[name.startswith(second)] for name in weights}
    for file in files:
        shard = {name: tensor for name, tensor in weights.items() if file_of[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())},
        "weight_map": file_of,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _published_name(name: str) -> str:
    """Turn transformers 5's name of a parameter into the one in published checkpoints, which vLLM expects."""
    for ours, published in (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ):
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    raise ValueError(f"unexpected parameter {name}")


def random_weight(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Draw a weight large enough that the answer depends on the image: a training run's initial scale would not do."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in name or "ln_q" in name or "lambda_" in name:
        return float(not name.endswith("bias")) + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if any(part in name for part in ("pos_embed", "position_embedding", "class_embedding", "cls_token")):
        return noise
    if "embed_tokens" in name or "image_newline" in name:
        return noise
    # The projector's output is to be of the size of the words' embeddings, so that neither drowns the other.
    gain = 3.0 if "lm_head" in name else 1.0 if "multi_modal_projector" in name or "merger" in name else 1.4
    return gain * noise / math.sqrt(shape[1:].numel())
