"""The language model of a checkpoint, run on token embeddings; subclasses define how prompts include images."""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fs_runtime.embedded.answer import FinishReason, Generation, Piece, StopTextFilter, sample_token
from fs_runtime.embedded.constraint import Form, FormState, FormTokens
from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError, fingerprint, load_weights

Payload = dict[str, NDArray[np.generic]]
"""From :meth:`VisionEncoder.payload`."""

# On disk: `language_model.model.…` and `language_model.lm_head.…`, or `model.language_model.…` and `lm_head.…`.
_KEY = re.compile(r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?(.+)$")
_BARE_KEY = re.compile(r"^model\.((?:embed_tokens|layers|norm)\..+)$")  # older Qwen-VL checkpoints


class PromptError(ValueError):
    """The prompt cannot be answered; the message says why."""


class ContextLengthError(PromptError):
    """The prompt leaves no room for an answer."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation, ready for the model, or several of one length that differ in their images alone.

    Attributes:
        embeddings: ``(B, L, hidden)``, with B = 1 for one.
        length: L.
        inputs: Further arguments of the model's ``forward``, by name.
    """

    embeddings: Tensor
    length: int
    inputs: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Row:
    """One of the answers that are made together."""

    text: StopTextFilter
    form: FormState | None
    tokens: list[int] = field(default_factory=list)
    said: str = ""
    reason: FinishReason = "length"


class EmbeddedModel:
    """The language model of a LLaVA-like checkpoint; its vision part is not loaded.

    Args:
        model: Local folder or hub id.
        revision: Hub revision.
        device: Where it runs.
        dtype: Its arithmetic.

    Raises:
        CheckpointError: The checkpoint is missing or incomplete.
    """

    def __init__(self, model: str, *, revision: str | None = None, device: str = "cpu", dtype: str = "float32") -> None:
        checkpoint = Checkpoint(model, revision)
        self._config: Any = AutoConfig.for_model(**checkpoint.config())
        text = self._config.text_config
        with torch.device("meta"):
            language: Any = self._language_part(text)
        weights = checkpoint.tensors(_weight_name)
        if getattr(self._config, "tie_word_embeddings", False) or getattr(text, "tie_word_embeddings", False):
            weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        load_weights(language, weights, "language model")
        self._device = torch.device(device)
        self._model = language.eval().requires_grad_(False)
        for parameter in language.parameters():
            parameter.data = parameter.data.to(self._device, getattr(torch, dtype))
        _restore_buffers(language, self._device)
        self._embed: nn.Module = self._model.get_input_embeddings()
        self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        if self._tokenizer.chat_template is None:  # older LLaVA checkpoints keep it beside the processor
            self._tokenizer.chat_template = checkpoint.json("chat_template.json").get("chat_template")
        if self._tokenizer.chat_template is None:
            raise CheckpointError(f"{model} has no chat template")
        token = getattr(self._config, "image_token_id", None)
        self._image_token = int(self._config.image_token_index if token is None else token)
        self._image_token_text = self._spell(self._image_token)
        self._ends = _end_tokens(checkpoint, self._tokenizer)
        self.context_length = int(text.max_position_embeddings)
        self._vocabulary = int(text.vocab_size)
        self._form_tokens: FormTokens | None = None  # made when it is first needed

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the weights as loaded, configuration, tokenizer and chat template, as ``sha256:<hex>``.

        Computing it takes about a second per GB.
        """
        read = {
            "config": self._config.to_dict(),
            "tokenizer": self._tokenizer.backend_tokenizer.to_str(),
            "template": self._tokenizer.chat_template,
            "ends": sorted(self._ends),
        }
        return fingerprint(read, self._model)

    def _language_part(self, text: Any) -> nn.Module:
        """The language model with its head, as ``model.…`` and ``lm_head``; on the meta device, without weights."""
        language: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            text, dtype=torch.float32
        )
        return language

    @property
    def _placeholder(self) -> str:
        """Text that the chat template writes for an image."""
        return self._image_token_text

    def _image_text(self, image: Payload) -> str:
        """Text that replaces the placeholder: an image token for each row of the image's embeddings."""
        return self._image_token_text * len(image["image_embeds"])

    def _inputs(self, ids: list[int], embeddings: Tensor, images: Sequence[Payload]) -> dict[str, Any]:
        """Further arguments of ``forward`` for the prompt, beside its ``(1, L, hidden)`` embeddings."""
        return {}

    def _next_inputs(self, prompt: Prompt, made: int) -> dict[str, Any]:
        """Further arguments of ``forward`` for the newest token; ``made`` tokens are generated so far."""
        return {}

    @torch.inference_mode()
    def prompt(self, messages: list[dict[str, Any]], images: Sequence[Payload]) -> Prompt:
        """Renders the conversation and inserts the images' embeddings at the image tokens.

        Args:
            messages: OpenAI messages whose contents are lists of ``{"type": "text"}`` and ``{"type": "image"}``.
            images: Payloads of :meth:`VisionEncoder.payload`, in order of appearance.

        Raises:
            PromptError: The chat template refuses the conversation, or the number of image tokens is wrong.
            ContextLengthError: The prompt leaves no room in the context for an answer.
        """
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates may raise anything
            raise PromptError(f"the model's chat template refuses the conversation: {error}") from error
        between = str(text).split(self._placeholder)
        if len(between) - 1 != len(images):
            raise PromptError(f"the prompt has {len(between) - 1} image tokens for {len(images)} images")
        text = between[0] + "".join(
            self._image_text(image) + rest for image, rest in zip(images, between[1:], strict=True)
        )
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = self._tokenizer.bos_token_id
        if begin is not None and self._tokenizer("")["input_ids"][:1] == [begin] and ids[:1] != [begin]:
            ids = [begin, *ids]
        if len(ids) >= self.context_length:  # checked before embeddings take thousands of bytes per token
            raise ContextLengthError(
                f"the conversation has {len(ids)} tokens, the model reads {self.context_length - 1}: "
                "send fewer images or less text"
            )
        embeddings = self._embeddings(ids, images)
        return Prompt(embeddings, len(ids), self._inputs(ids, embeddings, images))

    def _embeddings(self, ids: list[int], images: Sequence[Payload]) -> Tensor:
        """``(1, L, hidden)`` embeddings of the tokens, with the images' embeddings at the image tokens."""
        tokens = self._ids(ids)
        places = tokens == self._image_token
        sequence: Tensor = self._embed(tokens.masked_fill(places, 0))  # an image token may lie outside the vocabulary
        if images:
            rows = torch.cat([self._rows(image["image_embeds"]) for image in images])
            if len(rows) != int(places.sum()):
                raise PromptError(f"the prompt has {int(places.sum())} image tokens for {len(rows)} embeddings")
            sequence[places] = rows
        return sequence.unsqueeze(0)

    @torch.inference_mode()
    def generate(self, prompt: Prompt, options: Generation, cancelled: threading.Event) -> Iterator[Piece]:
        """Generates the answer piece by piece.

        Args:
            prompt: From :meth:`prompt`.
            options: Of the generation.
            cancelled: The caller sets it to stop; the answer then ends without a last piece.
        """
        generator = torch.Generator(self._device)
        generator.manual_seed(options.seed if options.seed is not None else time.time_ns())
        text = StopTextFilter(options.stop)
        form = self._follow(options.form)
        tokens: list[int] = []
        inputs: dict[str, Any] = {"inputs_embeds": prompt.embeddings, **prompt.inputs}
        reason: FinishReason = "length"
        room = min(options.max_new_tokens, self.context_length - prompt.length)
        while len(tokens) < room:
            if cancelled.is_set():
                return
            out = self._model(**inputs, use_cache=True, logits_to_keep=1)
            token = sample_token(_allowed(out.logits[0, -1].float(), form), options, generator)
            if token in self._ends:
                reason = "stop"
                break
            tokens.append(token)
            if form is not None:
                form.add(token)
            inputs = {"input_ids": self._ids([token]).unsqueeze(0), "past_key_values": out.past_key_values}
            inputs |= self._next_inputs(prompt, len(tokens))
            new = text.feed(self._decoded(tokens))
            if new:
                yield Piece(new, len(tokens))
            if text.stopped or (form is not None and form.complete):
                reason = "stop"
                break
        yield Piece(text.flush(), len(tokens), reason)

    @torch.inference_mode()
    def answers(self, prompts: Sequence[Prompt], options: Generation, cancelled: threading.Event) -> list[Piece] | None:
        """Greedy answers to conversations that differ in their images alone, made together.

        Each equals what :meth:`generate` makes of it, but for arithmetic that depends on the batch.

        Args:
            prompts: From :meth:`prompt`, all of one length.
            options: Of the generation, with a temperature of 0.
            cancelled: The caller sets it to stop.

        Returns:
            The whole text of each; None once it is cancelled.

        Raises:
            ValueError: The prompts have several lengths, or decoding is not greedy.
        """
        if len({prompt.length for prompt in prompts}) != 1 or not options.greedy:
            raise ValueError("answers are made together for prompts of one length, by greedy decoding")
        together = Prompt(
            torch.cat([prompt.embeddings for prompt in prompts]),
            prompts[0].length,
            self._together([prompt.inputs for prompt in prompts]),
        )
        rows = [_Row(StopTextFilter(options.stop), self._follow(options.form)) for _ in prompts]
        inputs: dict[str, Any] = {"inputs_embeds": together.embeddings, **together.inputs}
        for made in range(1, 1 + min(options.max_new_tokens, self.context_length - together.length)):
            if cancelled.is_set():
                return None
            out = self._model(**inputs, use_cache=True, logits_to_keep=1)
            logits = out.logits[:, -1].float()
            if options.form is None:
                tokens = logits.argmax(-1).tolist()
            else:
                tokens = [int(_allowed(own, row.form).argmax()) for own, row in zip(logits, rows, strict=True)]
            for row, token in zip(rows, tokens, strict=True):
                self._append(row, token, bool(options.stop))
            if all(row.reason == "stop" for row in rows):
                break
            inputs = {"input_ids": self._ids(tokens).unsqueeze(1), "past_key_values": out.past_key_values}
            inputs |= self._next_inputs(together, made)
        for row in rows:
            row.said += row.text.feed(self._decoded(row.tokens)) + row.text.flush()
        return [Piece(row.said, len(row.tokens), row.reason) for row in rows]

    def check_form(self, form: Form) -> None:
        """Refuses a form that answers cannot be held to.

        Raises:
            FormError: The message says why.
        """
        self._follow(form)

    def _append(self, row: _Row, token: int, stops: bool) -> None:
        """Adds a token to an answer that has not ended."""
        if row.reason == "stop":
            return
        if token in self._ends:
            row.reason = "stop"
            return
        row.tokens.append(token)
        if row.form is not None:
            row.form.add(token)
            if row.form.complete:
                row.reason = "stop"
        if stops:
            row.said += row.text.feed(self._decoded(row.tokens))
            if row.text.stopped:
                row.reason = "stop"

    def _follow(self, form: Form | None) -> FormState | None:
        if form is None:
            return None
        if self._form_tokens is None:
            self._form_tokens = FormTokens(self._tokenizer, self._vocabulary, sorted(self._ends))
        return self._form_tokens.follow(form)

    def _together(self, inputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Further arguments of ``forward`` for several prompts, from those for each."""
        return {name: _concatenated([own[name] for own in inputs]) for name in inputs[0]}

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self._device)

    def _rows(self, embeddings: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(embeddings).to(self._device, self._model.dtype)

    def _spell(self, token: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(token))


def _allowed(logits: Tensor, form: FormState | None) -> Tensor:
    return logits if form is None else form.apply(logits)


def _concatenated(values: Sequence[Any]) -> Any:
    """Tensors along their first axis; lists and dictionaries of tensors element by element."""
    first = values[0]
    if isinstance(first, dict):
        return {name: _concatenated([value[name] for value in values]) for name in first}
    if isinstance(first, list):
        return [_concatenated(parts) for parts in zip(*values, strict=True)]
    return torch.cat(list(values)) if isinstance(first, Tensor) else first


def _weight_name(key: str) -> str | None:
    if key in ("lm_head.weight", "language_model.lm_head.weight"):
        return "lm_head.weight"
    match = _KEY.match(key) or _BARE_KEY.match(key)
    return f"model.{match.group(1)}" if match else None


def _restore_buffers(model: nn.Module, device: torch.device) -> None:
    """Sets the buffers, which checkpoints do not store and which have no values on the meta device.

    They are the rotary frequencies, which must stay float32, and Gemma's scale of word embeddings.
    """
    for name, module in list(model.named_modules()):
        if not any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            continue
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)
        else:
            model.set_submodule(name, type(module)(config=module.config).to(device))


def _end_tokens(checkpoint: Checkpoint, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's and those of ``generation_config.json``."""
    ends = checkpoint.json("generation_config.json").get("eos_token_id", [])
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return frozenset(ends)
