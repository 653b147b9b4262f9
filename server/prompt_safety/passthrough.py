"""What of a chat request may go on to the language model server.

Checked against the request of vLLM 0.32 (``ChatCompletionRequest``); what is not named here passes.
"""

from __future__ import annotations

from typing import Any

from server.errors import invalid

# Refused at the top, in messages and in content parts, each for its own reason.
REFUSED_FIELDS = frozenset(
    {
        # Images that nobody smoothed, or embeddings of a wrong shape, which stop vLLM's engine.
        "image_embeds",
        "audio_embeds",
        "video_embeds",
        "prompt_embeds",
        # Names a cached image: one that was cached under it would answer for this one.
        "uuid",
        # Change how vLLM turns media into tokens, so that the embeddings no longer fit.
        "mm_processor_kwargs",
        "media_io_kwargs",
        # Addresses from which vLLM fetches caches of other servers, and free arguments that end in the same place.
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        # A program that runs in the server, and may write image tokens where it likes.
        "chat_template",
        # Cut the prompt, perhaps in the middle of an image.
        "truncate_prompt_tokens",
        "truncation_side",
        # One caller before all others; another caller's request or session.
        "priority",
        "request_id",
        "session_id",
    }
)
# Passed on purpose: `chat_template_kwargs` (scalars only, see below), `documents` and `tools` (text, made harmless),
# `cache_salt` (it can only part caches), `return_token_ids`, `return_prompt_text`, `prompt_logprobs` and `echo` (they
# tell callers what they sent), `structured_outputs` and `response_format` (vLLM bounds their grammars), `logit_bias`,
# `allowed_token_ids` and `stop_token_ids` (they shape the answer alone), `use_beam_search` and `n`.

# Arguments of the renderer itself, which a template's variable of the same name would replace.
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
    """Lets scalars through, such as ``enable_thinking: false``.

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
