"""What of a chat request may go on to the language model server, and with which words.

Checked against the request of vLLM 0.32 (``ChatCompletionRequest``); what is not named here passes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
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
# Never part of the prompt; `stop` and `bad_words` must match the answer as it is.
_NOT_PROMPT = frozenset({"model", "stop", "bad_words", "logit_bias", "user", "metadata"})
# vLLM's own stand-ins for media, in front of its chat template.
_VLLM_PLACEHOLDERS = ("<##IMAGE##>", "<##VIDEO##>", "<##AUDIO##>", "<##PROMPT_EMBEDS##>", "<prompt_embeds>")
# Characters that normalisers of tokenizers drop: controls but for white space, and invisible ones.
_INVISIBLE = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
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


class ControlTokens:
    """Makes the model's own tokens harmless in text, where they would be taken for further images or turns.

    A space goes behind the first character. Spellings that a tokenizer's normaliser would turn into a token
    (compatibility characters, invisible ones in between) are found too.

    Args:
        tokens: Spellings of the tokens.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = tuple(
            dict.fromkeys(
                spelling
                for token in (*tokens, *_VLLM_PLACEHOLDERS)
                for spelling in (token, _folded(token))
                if len(spelling) > 1
            )
        )

    def defuse_body(self, body: dict[str, Any]) -> None:
        """Goes through all text of a request that can become part of the prompt, in place.

        Raises:
            ApiError: 400: text parts that spell a token only together.
        """
        for name, value in body.items():
            if name not in _NOT_PROMPT:
                body[name] = self._walk(value, name)
        pieces = [text.strip() for message in body["messages"] for text in _texts(message)]
        if self._found_in(_folded("".join(pieces))):
            raise invalid(
                "messages: texts that stand next to each other spell one of the model's control tokens; "
                "put them into one text",
                "messages",
                "split_control_token",
            )

    def defuse(self, text: str) -> str:
        """One text."""
        text = self._split(text)
        if (not text.isascii() or _INVISIBLE.search(text)) and self._found_in(folded := _folded(text)):
            text = self._split(folded)
        return text

    def _split(self, text: str) -> str:
        for token in self._tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def _found_in(self, text: str) -> bool:
        return any(token in text for token in self._tokens)

    def _walk(self, value: Any, name: str) -> Any:
        if isinstance(value, str):
            return self._arguments(value) if name == "arguments" else self.defuse(value)
        if isinstance(value, list):
            return [self._walk(item, name) for item in value]
        if isinstance(value, dict):
            return {self.defuse(key): self._walk(item, key) for key, item in value.items()}
        return value

    def _arguments(self, text: str) -> str:
        """Arguments of a tool call are JSON in a text: vLLM parses it, so that ``\\u003c`` becomes ``<``."""
        try:
            parsed = json.loads(text)
            harmless = self._walk(parsed, "")
        except (ValueError, RecursionError):
            return self.defuse(text)  # vLLM drops what it cannot parse
        return text if harmless == parsed else json.dumps(harmless, ensure_ascii=False)


def _folded(text: str) -> str:
    """The text as a normaliser might hand it to the tokenizer."""
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)))


def _texts(message: dict[str, Any]) -> Iterable[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from (part[key] for key in ("text", "refusal", "thinking") if isinstance(part.get(key), str))
