"""Answers of the reference model to many questions in batches, from image embeddings."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fs_runtime.attacks.answer_loss import IGNORED
from fs_runtime.encoders.checkpoint import Checkpoint, fingerprint
from fs_runtime.reference.evaluate import load_model

_MAX_NEW_TOKENS = 64


class Answerer:
    """The reference model's language model, which answers from image embeddings.

    Args:
        folder: A reference model.
        device: Where it runs.
        batch_size: Questions answered at once.
    """

    def __init__(self, folder: Path, device: str = "cpu", batch_size: int = 64) -> None:
        self._model, self._processor = load_model(folder, device)
        self._model.requires_grad_(False)
        self._checkpoint = Checkpoint(folder)
        self._batch_size = batch_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all that answers depend on beside the embeddings, as ``sha256:<hex>``.

        It covers the weights of the language model as loaded, the configurations of model and generation, the tokenizer
        and the chat template. Computing it takes about a second per GB.
        """
        tokenizer = json.loads(self._processor.tokenizer.backend_tokenizer.to_str())
        for passing in ("padding", "truncation"):  # state of the last call
            del tokenizer[passing]
        read = {
            "config": self._checkpoint.config(),
            "generation": self._checkpoint.json("generation_config.json"),
            "tokenizer": tokenizer,
            "template": self._processor.chat_template,
        }
        return fingerprint(read, self._model.model.language_model, self._model.lm_head)

    @torch.inference_mode()
    def answer(self, questions: Sequence[str], embeddings: Tensor) -> list[str]:
        """Greedy answers, in the order of the questions.

        Args:
            questions: One for each image.
            embeddings: ``(B, T', D')`` embeddings of one image each.
        """
        prompts = [self._prompt(question, embeddings.shape[1]) for question in questions]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # similar lengths need little padding
        answers = [""] * len(prompts)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            texts = self._generate([prompts[i] for i in chosen], embeddings[chosen])
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text.strip()
        return answers

    def scorer(self, questions: Sequence[str], answers: Sequence[str], tokens: int) -> AnswerScorer:
        """A scorer for these questions, each with one answer.

        Args:
            questions: One for each image.
            answers: One for each question, as :meth:`answer` would give it.
            tokens: T', embeddings of one image.
        """
        prompts = [self._prompt(question, tokens) for question in questions]
        return AnswerScorer(self._model, self._processor.tokenizer, prompts, answers)

    def _prompt(self, question: str, tokens: int) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        image_token = self._processor.image_token
        return str(text).replace(image_token, image_token * tokens)

    def _generate(self, prompts: list[str], embeddings: Tensor) -> list[str]:
        tokenizer = self._processor.tokenizer
        inputs = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt").to(self._model.device)
        sequence = self._model.get_input_embeddings()(inputs["input_ids"])  # (B, L, D')
        places = inputs["input_ids"] == self._model.config.image_token_index
        sequence[places] = embeddings.flatten(0, 1).to(sequence)
        generated = self._model.generate(
            inputs_embeds=sequence,
            attention_mask=inputs["attention_mask"],
            do_sample=False,
            max_new_tokens=_MAX_NEW_TOKENS,
        )
        return [str(text) for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]


class AnswerScorer:
    """An :class:`~fs_runtime.attacks.answer_loss.AnswerModel`: one pass over prompt and answer, without generation.

    Each token of the answer, its end token included, is scored after the answer's tokens before it. If each has the
    largest logit, greedy generation gives exactly this answer.

    Args:
        model: The whole model, whose language model is used.
        tokenizer: Its tokenizer.
        prompts: One for each question, with a token for each of the image's embeddings.
        answers: One for each prompt.
    """

    def __init__(self, model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> None:
        self._model = model
        end, pad = model.config.text_config.eos_token_id, model.config.text_config.pad_token_id
        asked = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        given = [[*ids, end] for ids in tokenizer(list(answers), add_special_tokens=False)["input_ids"]]
        length = max(len(p) + len(a) for p, a in zip(asked, given, strict=True)) - 1
        self._first = min(map(len, asked)) - 1  # position of the logits for the earliest answer's first token
        self._inputs = torch.full((len(asked), length), pad)
        self._wanted = torch.full((len(asked), length), IGNORED)
        for row, (prompt, answer) in enumerate(zip(asked, given, strict=True)):
            stop = len(prompt) + len(answer) - 1
            # Padding at the end does not matter, since attention is causal.
            self._inputs[row, :stop] = torch.tensor(prompt + answer[:-1])
            self._wanted[row, len(prompt) - 1 : stop] = torch.tensor(answer)

    def __call__(self, embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``(B, L, V)`` and tokens ``(B, L)``, from embeddings ``(B, T', D')`` and question numbers ``(B,)``."""
        device = self._model.device
        inputs, wanted = self._inputs[rows.cpu()].to(device), self._wanted[rows.cpu()].to(device)
        sequence = self._model.get_input_embeddings()(inputs)  # (B, L, D')
        places = (inputs == self._model.config.image_token_index).unsqueeze(-1)
        sequence = sequence.masked_scatter(places, embeddings.to(sequence))
        hidden = self._model.model.language_model(inputs_embeds=sequence, use_cache=False).last_hidden_state
        return self._model.lm_head(hidden[:, self._first :]).float(), wanted[:, self._first :]
