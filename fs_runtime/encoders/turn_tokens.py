"""The special tokens with which a model's chat template begins and ends turns."""

from __future__ import annotations

from typing import Any

from fs_runtime.encoders.checkpoint import Checkpoint

_ENDS = ("bos_token", "eos_token", "pad_token")


def turn_tokens(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Texts that a model's tokenizer reads as turn markers of a conversation, such as ``<|im_start|>`` or ``</s>``.

    These are the special tokens that its chat templates contain, and the tokens of beginning, end and padding. Other
    special tokens are left out: users' texts may contain them on purpose (``<|box_start|>`` of Qwen-VL). So is
    ``<think>``, which templates use to parse answers; it is not a special token.
    """
    config = checkpoint.json("tokenizer_config.json")
    templates = "".join(_templates(checkpoint, config))
    in_templates = [token for token in _special_tokens(checkpoint, config) if token in templates]
    named = [config.get(name) or checkpoint.json("special_tokens_map.json").get(name) for name in _ENDS]
    return tuple(dict.fromkeys(token for token in (*in_templates, *map(_spelling, named)) if token))


def _templates(checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    """Sources of all chat templates, wherever the checkpoint keeps them."""
    found = [config.get("chat_template"), checkpoint.json("chat_template.json").get("chat_template")]
    if path := checkpoint.file("chat_template.jinja"):
        found.append(path.read_text(encoding="utf-8"))
    named = [part.get("template") for source in found if isinstance(source, list) for part in source]
    return [source for source in (*found, *named) if isinstance(source, str)]


def _special_tokens(checkpoint: Checkpoint, config: dict[str, Any]) -> list[str]:
    listed = [
        *checkpoint.json("tokenizer.json").get("added_tokens", []),
        *config.get("added_tokens_decoder", {}).values(),
    ]
    return [token["content"] for token in listed if token.get("special")]


def _spelling(token: Any) -> str:
    """Text of a token, which a configuration gives as a string or as an object with ``content``."""
    return str(token.get("content") or "") if isinstance(token, dict) else str(token or "")
