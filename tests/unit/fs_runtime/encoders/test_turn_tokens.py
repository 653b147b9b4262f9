"""Which of a tokenizer's special tokens frame turns, in the layouts that published checkpoints have."""

import json
from pathlib import Path
from typing import Any

import pytest

from fs_runtime.encoders.checkpoint import Checkpoint
from fs_runtime.encoders.turn_tokens import turn_tokens
from fs_runtime.reference import reference_model_path

QWEN = "{{ '<|im_start|>' + message.role }}<|vision_start|><|image_pad|>{{ '<think>' }}<|im_end|>"
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|box_start|>", "<|vision_start|>", "<|image_pad|>"]


def write(folder: Path, **files: Any) -> Checkpoint:
    for name, contents in files.items():
        name, text = name.replace("__", "."), contents if isinstance(contents, str) else json.dumps(contents)
        (folder / name).write_text(text)
    return Checkpoint(folder)


def test_of_the_template_and_the_ends_and_no_others(tmp_path: Path) -> None:
    added = [{"content": token, "special": True} for token in QWEN_TOKENS] + [{"content": "<think>", "special": False}]
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    checkpoint = write(
        tmp_path, tokenizer__json={"added_tokens": added}, tokenizer_config__json=config, chat_template__jinja=QWEN
    )
    found = turn_tokens(checkpoint)
    assert set(found) == {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|image_pad|>"}
    assert len(found) == len(set(found))


@pytest.mark.parametrize("place", ["config", "list", "file"])
def test_wherever_the_template_is_kept(tmp_path: Path, place: str) -> None:
    """Older checkpoints: tokens in tokenizer_config.json, ends as objects, templates in one of several places."""
    template = "[INST] {{ content }} [/INST]"
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(n): {"content": t, "special": True} for n, t in enumerate(["[INST]", "[/INST]"])},
        "bos_token": {"content": "<s>", "lstrip": False},
    }
    files: dict[str, Any] = {"special_tokens_map__json": {"eos_token": {"content": "</s>"}}}
    if place == "config":
        config["chat_template"] = template
    elif place == "list":
        config["chat_template"] = [{"name": "default", "template": "x"}, {"name": "tool_use", "template": template}]
    else:
        files["chat_template__json"] = {"chat_template": template}
    found = turn_tokens(write(tmp_path, tokenizer_config__json=config, **files))
    assert set(found) == {"[INST]", "[/INST]", "<s>", "</s>"}


def test_a_checkpoint_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert turn_tokens(write(tmp_path, config__json={})) == ()


def test_the_reference_model() -> None:
    found = turn_tokens(Checkpoint(reference_model_path()))
    assert {"<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"} <= set(found)
