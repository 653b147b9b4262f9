"""Answers of the reference model to many questions at once, from image embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fs_runtime.reference.evaluate import load_model

_MAX_NEW_TOKENS = 64


class Answerer:
    """The reference model's language part, fed with embeddings.

    Args:
        folder: A reference model.
        device: Where it runs.
        batch_size: Questions answered at once.
    """

    def __init__(self, folder: Path, device: str = "cpu", batch_size: int = 64) -> None:
        self._model, self._processor = load_model(folder, device)
        self._batch_size = batch_size

    @torch.inference_mode()
    def answer(self, questions: Sequence[str], embeddings: Tensor) -> list[str]:
        """Greedy answers, in the order of the questions.

        Args:
            questions: One for each image.
            embeddings: ``(B, T', D')`` embeddings of one image each.
        """
        prompts = [self._prompt(question, embeddings.shape[1]) for question in questions]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # alike lengths need little padding
        answers = [""] * len(prompts)
        for start in range(0, len(order), self._batch_size):
            chosen = order[start : start + self._batch_size]
            texts = self._generate([prompts[i] for i in chosen], embeddings[chosen])
            for i, text in zip(chosen, texts, strict=True):
                answers[i] = text.strip()
        return answers

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
