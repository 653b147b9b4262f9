"""Refuses fields of chat requests that must not reach the language model server.

The list covers the ``ChatCompletionRequest`` of vLLM 0.32; fields that are not named here pass.
"""

from __future__ import annotations

from typing import Any

from server.errors import invalid

# Refused at the top level, in messages and in content parts.
REFUSED_FIELDS = frozenset(
    {
        # They would bypass smoothing, or crash vLLM's engine with embeddings of a wrong shape.
        "image_embeds",
        "audio_embeds",
        "video_embeds",
        "prompt_embeds",
        # Key of vLLM's image cache: it would select another cached image in place of this one.
        "uuid",
        # They change how vLLM turns media into tokens, so the embeddings would no longer fit.
        "mm_processor_kwargs",
        "media_io_kwargs",
        # Addresses of servers whose KV cache vLLM fetches, and free arguments that can set the same.
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        # A program that runs in the server and can write image tokens anywhere.
        "chat_template",
        # They cut the prompt, perhaps in the middle of an image.
        "truncate_prompt_tokens",
        "truncation_side",
        # They would put one caller before others, or name another caller's request or session.
        "priority",
        "request_id",
        "session_id",
    }
)
# Passed on purpose: `chat_template_kwargs` (scalars only, see below), `documents` and `tools` (their text is
# neutralised), `cache_salt` (it can only separate caches), `return_token_ids`, `return_prompt_text`, `prompt_logprobs`
# and `echo` (they return what the caller sent), `structured_outputs` and `response_format` (vLLM bounds their
# grammars), `logit_bias`, `allowed_token_ids` and `stop_token_ids` (they affect the answer only),
# `use_beam_search` and `n`.

# Arguments of the chat template's renderer, which a template variable of the same name would override.
_RENDERER_ARGUMENTS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def refuse_fields(fields: dict[str, Any], path: str = "") -> None:
    """Raises a 400 for a field of :data:`REFUSED_FIELDS`."""
    for name in sorted(REFUSED_FIELDS & fields.keys()):
        raise invalid(f"{path}{name} may not be sent to this server; leave it out", f"{path}{name}", "field_refused")


def check_template_variables(variables: Any) -> None:
    """Checks ``chat_template_kwargs``: only scalars such as ``enable_thinking: false`` are allowed.

    Raises:
        ApiError: 400.
    """
    if variables is None:
        return
    if not isinstance(variables, dict):
        raise invalid("chat_template_kwargs must be an object", "chat_template_kwargs")
    for name, value in variables.items():
        path = f"chat_template_kwargs.{name}"
        if name in _RENDERER_ARGUMENTS:
            raise invalid(f"{path} may not be sent to this server; leave it out", path, "field_refused")
        if isinstance(value, (dict, list)):
            raise invalid(f"{path} must be a text, a number, true, false or null", path)
