"""A language model in this process, fed with image embeddings: for small models, tests and machines without vLLM."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fs_runtime.encoders.checkpoint import Checkpoint, CheckpointError, load_weights

FinishReason = Literal["stop", "length"]
# On disk: `language_model.model.…` and `language_model.lm_head.…`, or `model.language_model.…` and `lm_head.…`.
_KEY = re.compile(r"^(?:model\.)?language_model\.(?:model\.)?(.+)$")


class PromptError(ValueError):
    """The prompt cannot be answered; the message says why."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How to draw the answer.

    Attributes:
        max_new_tokens: Most tokens of the answer.
        temperature: 0 takes the likeliest token each time.
        top_p: Smallest set of tokens with this probability is drawn from.
        stop: Texts that end the answer; they are not part of it.
        seed: Of the draws; None takes a fresh one.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer.

    Attributes:
        text: New text, perhaps empty.
        tokens: Tokens generated so far.
        finish_reason: Set on the last piece.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation, ready for the model: ``(1, L, hidden)`` embeddings."""

    embeddings: Tensor
    length: int


class EmbeddedModel:
    """The language part of a checkpoint like LLaVA's or InternVL's; its vision part is not loaded.

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
        config = AutoConfig.for_model(**checkpoint.config())
        with torch.device("meta"):
            language = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config.text_config, dtype=torch.float32
            )
        weights = checkpoint.tensors(_weight_name)
        if getattr(config, "tie_word_embeddings", False) or getattr(config.text_config, "tie_word_embeddings", False):
            weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
        load_weights(language, weights, "language model")
        _restore_rotary(language)
        self._model = language.to(device=torch.device(device), dtype=getattr(torch, dtype)).eval().requires_grad_(False)
        self._device = torch.device(device)
        self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        if self._tokenizer.chat_template is None:  # older LLaVA checkpoints keep it beside the processor
            self._tokenizer.chat_template = checkpoint.json("chat_template.json").get("chat_template")
        if self._tokenizer.chat_template is None:
            raise CheckpointError(f"{model} has no chat template")
        self._image_token = int(config.image_token_id)
        self._frame = self._frame_of_images()
        self._ends = _end_tokens(checkpoint, self._tokenizer)
        self.context_length = int(config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def prompt(self, messages: list[dict[str, Any]], images: Sequence[dict[str, NDArray[np.generic]]]) -> Prompt:
        """Renders the conversation and puts the images' embeddings where the image tokens are.

        Args:
            messages: OpenAI messages whose contents are lists of ``{"type": "text"}`` and ``{"type": "image"}``.
            images: Payloads of :meth:`VisionEncoder.payload`, in order of appearance.

        Raises:
            PromptError: The chat template refuses the conversation, or the number of image tokens is off.
        """
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise what they like
            raise PromptError(f"the model's chat template refuses the conversation: {error}") from error
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        begin = self._tokenizer.bos_token_id
        if begin is not None and self._tokenizer("")["input_ids"][:1] == [begin] and ids[:1] != [begin]:
            ids = [begin, *ids]
        places = [index for index, token in enumerate(ids) if token == self._image_token]
        if len(places) != len(images):
            raise PromptError(f"the prompt has {len(places)} image tokens for {len(images)} images")
        embed = self._model.get_input_embeddings()
        parts, start = [], 0
        before, behind = self._frame
        for place, image in zip(places, images, strict=True):
            embeddings = torch.from_numpy(image["image_embeds"]).to(self._device, self._model.dtype)
            parts += [embed(self._ids(ids[start:place] + before)), embeddings, embed(self._ids(behind))]
            start = place + 1
        parts.append(embed(self._ids(ids[start:])))
        sequence = torch.cat(parts).unsqueeze(0)
        return Prompt(sequence, sequence.shape[1])

    @torch.inference_mode()
    def generate(self, prompt: Prompt, options: Generation, cancelled: threading.Event) -> Iterator[Piece]:
        """Draws the answer piece by piece.

        Args:
            prompt: From :meth:`prompt`.
            options: How to draw.
            cancelled: Set by the caller to stop; the answer then ends without a last piece.
        """
        generator = torch.Generator(self._device)
        generator.manual_seed(options.seed if options.seed is not None else time.time_ns())
        text = _StopText(options.stop)
        tokens: list[int] = []
        inputs: dict[str, Tensor] = {"inputs_embeds": prompt.embeddings}
        cache = None
        reason: FinishReason = "length"
        room = min(options.max_new_tokens, self.context_length - prompt.length)
        while len(tokens) < room:
            if cancelled.is_set():
                return
            out = self._model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            token = _draw(out.logits[0, -1].float(), options, generator)
            if token in self._ends:
                reason = "stop"
                break
            tokens.append(token)
            inputs = {"input_ids": self._ids([token]).unsqueeze(0)}
            new = text.feed(str(self._tokenizer.decode(tokens, skip_special_tokens=True)))
            if text.stopped:
                reason = "stop"
                break
            if new:
                yield Piece(new, len(tokens))
        yield Piece(text.rest(), len(tokens), reason)

    def _frame_of_images(self) -> tuple[list[int], list[int]]:
        """Tokens before and behind an image that the chat template leaves to the processor; InternVL has them."""
        ids = (getattr(self._tokenizer, f"{part}_image_token_id", None) for part in ("start", "end"))
        before, behind = ([] if token is None else [int(token)] for token in ids)
        return before, behind

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self._device)


class _StopText:
    """Turns the growing decoded text into pieces, and holds back what may become a stop text or half a character."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = [text for text in stop if text]
        self._text = ""
        self._sent = 0
        self.stopped = False

    def feed(self, text: str) -> str:
        self._text = text
        ends = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if ends:
            self._text, self.stopped = text[: min(ends)], True
            return ""
        safe = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        safe = min(safe, len(text.rstrip("\ufffd")))  # bytes of a character that is not complete
        return self._take(safe)

    def rest(self) -> str:
        return self._take(len(self._text))

    def _take(self, end: int) -> str:
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _draw(logits: Tensor, options: Generation, generator: torch.Generator) -> int:
    """One token: the likeliest, or drawn from the nucleus (Holtzman et al. 2020)."""
    if options.temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / options.temperature, dim=-1)
    if options.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= options.top_p  # the first token always stays
        probabilities[order[outside]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _weight_name(key: str) -> str | None:
    if key in ("lm_head.weight", "language_model.lm_head.weight"):
        return "lm_head.weight"
    match = _KEY.match(key)
    return f"model.{match.group(1)}" if match else None


def _restore_rotary(model: torch.nn.Module) -> None:
    """Recomputes the rotary frequencies: they are not stored, and the meta device left them without values."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            fresh = type(module)(config=module.config)
            model.set_submodule(name, fresh)


def _end_tokens(checkpoint: Checkpoint, tokenizer: Any) -> frozenset[int]:
    """Tokens that end an answer: the tokenizer's and those of ``generation_config.json``."""
    ends = checkpoint.json("generation_config.json").get("eos_token_id", [])
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)
    return frozenset(ends)
