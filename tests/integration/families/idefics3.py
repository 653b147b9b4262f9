"""Tiny Idefics3 and SmolVLM: tiles up to three along a side, the whole image last, pixel shuffle, a Llama behind."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from .case import NEAREST, FamilyCase, tiny_tokenizer, tiny_widths, write_checkpoint

SIDE, PATCH, SCALE = 56, 14, 2
LONGEST = 3 * SIDE
TOKENS = (SIDE // PATCH // SCALE) ** 2
LANCZOS = 1

CHAT_TEMPLATE = """\
{% for message in messages %}{{ message['role'] | capitalize }}:\
{% for part in message['content'] %}{% if part['type'] == 'text' %} {{ part['text'] }}\
{% else %}<image>{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}\
{% if add_generation_prompt %}Assistant:{% endif %}"""

_KINDS: dict[str, Any] = {
    "idefics3": ("Idefics3", Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": ("SmolVLM", SmolVLMConfig, SmolVLMForConditionalGeneration),
}


def _builder(model_type: str) -> Callable[..., None]:
    """The function that writes a tiny checkpoint of one of the two."""
    name, config_class, model_class = _KINDS[model_type]

    def build(folder: Path, resample: int = NEAREST, splitting: bool = True) -> None:
        places = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
        tokenizer = tiny_tokenizer(
            "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places
        )
        vision = {
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": SIDE,
            "patch_size": PATCH,
        }
        config = config_class(
            text_config=LlamaConfig(**tiny_widths(tokenizer)),
            vision_config=vision,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            scale_factor=SCALE,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
        image_processor = {
            "image_processor_type": f"{name}ImageProcessor",
            "processor_class": f"{name}Processor",
            "do_convert_rgb": True,
            "do_image_splitting": splitting,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "max_image_size": {"longest_edge": SIDE},
            "resample": resample,
            "rescale_factor": 1 / 255,
            "size": {"longest_edge": LONGEST},
        }
        write_checkpoint(
            folder,
            config,
            model_class,
            tokenizer,
            chat_template=CHAT_TEMPLATE,
            published=(("", ""),),
            files={
                "preprocessor_config.json": image_processor,
                "processor_config.json": {"processor_class": f"{name}Processor", "image_seq_len": TOKENS},
            },
        )

    return build


def _written(inputs: Any, index: int, count: int) -> str:
    """What SmolVLM's processor, which needs torchvision for its videos, would write: Idefics3's does the same."""
    tokens = SimpleNamespace(
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_tag="<global-img>",
        image_seq_len=TOKENS,
    )
    return Idefics3Processor.replace_image_token(tokens, inputs, index)


def _case(model_type: str) -> FamilyCase:
    return FamilyCase(
        model_type,
        _builder(model_type),
        # Three by two tiles, one by three, three by three, and sides that the second resize changes much.
        sizes=((101, 61), (41, 131), (167, 167), (21, 201), (300, 7)),
        reference=_KINDS[model_type][2],
        inputs=("pixel_values", "pixel_attention_mask"),
        filter=LANCZOS,
        rounding=2.0,  # three resizes in a row
        mark="<image>",
        written=None if model_type == "idefics3" else _written,
    )


IDEFICS3, SMOLVLM = (_case(model_type) for model_type in _KINDS)
