"""Answers that are made together are those that are made one by one, with and without a form."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fs_runtime.embedded import EmbeddedModel, Form, FormError, Generation, Prompt
from fs_runtime.encoders import VisionEncoder, load_encoder
from fs_runtime.reference import reference_model_path

QUESTION: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
]


@pytest.fixture(scope="module")
def model() -> EmbeddedModel:
    return EmbeddedModel(str(reference_model_path()))


@pytest.fixture(scope="module")
def prompts(model: EmbeddedModel) -> list[Prompt]:
    encoder = load_encoder(str(reference_model_path()))
    return prompts_of(model, encoder)


def test_the_fingerprint_covers_the_weights(model: EmbeddedModel) -> None:
    other = EmbeddedModel(str(reference_model_path()))
    assert other.fingerprint == model.fingerprint
    changed = EmbeddedModel(str(reference_model_path()))
    with torch.no_grad():
        next(changed._model.parameters()).view(-1)[0] += 1
    assert changed.fingerprint != model.fingerprint


def prompts_of(model: EmbeddedModel, encoder: VisionEncoder) -> list[Prompt]:
    rng = np.random.default_rng(0)
    prompts = []
    for _ in range(6):
        image = encoder.prepare(rng.integers(0, 256, (56, 56, 3), dtype=np.uint8))
        with torch.inference_mode():
            payload = encoder.payload(encoder.project(encoder.encode(image.pixels[None])[0], image.grid), image)
        prompts.append(model.prompt(QUESTION, [payload]))
    return prompts


def one_by_one(model: EmbeddedModel, prompts: list[Prompt], options: Generation) -> list[tuple[str, int, str | None]]:
    made = []
    for prompt in prompts:
        pieces = list(model.generate(prompt, options, threading.Event()))
        made.append(("".join(piece.text for piece in pieces), pieces[-1].tokens, pieces[-1].finish_reason))
    return made


def together(model: EmbeddedModel, prompts: list[Prompt], options: Generation) -> list[tuple[str, int, str | None]]:
    answers = model.answers(prompts, options, threading.Event())
    assert answers is not None
    return [(answer.text, answer.tokens, answer.finish_reason) for answer in answers]


FORMS: list[Callable[[], Form | None]] = [
    lambda: None,
    lambda: Form.of_choices(["red", "red circle", 'a "quoted"\nline', "ü"]),
    lambda: Form.of_json({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}),
]


@pytest.mark.parametrize("form", range(len(FORMS)))
@pytest.mark.parametrize("length", [1, 12])
def test_each_is_what_it_is_by_itself(model: EmbeddedModel, prompts: list[Prompt], form: int, length: int) -> None:
    options = Generation(length, temperature=0, form=FORMS[form]())
    assert together(model, prompts, options) == one_by_one(model, prompts, options)


def test_stop_texts_end_each_where_it_has_one(model: EmbeddedModel, prompts: list[Prompt]) -> None:
    free = together(model, prompts, Generation(12, temperature=0))
    stop = free[0][0][3:5]
    options = Generation(12, temperature=0, stop=(stop,))
    stopped = together(model, prompts, options)
    assert stopped == one_by_one(model, prompts, options)
    assert stopped[0][2] == "stop"
    assert stop not in "".join(text for text, _, _ in stopped)


def test_answers_have_their_form(model: EmbeddedModel, prompts: list[Prompt]) -> None:
    choices = ["red", "red circle", 'a "quoted"\nline', "ü"]
    chosen = together(model, prompts, Generation(30, temperature=0, form=Form.of_choices(choices)))
    assert {text for text, _, _ in chosen} <= set(choices)
    assert {reason for _, _, reason in chosen} == {"stop"}


def test_sampled_answers_have_their_form_too(model: EmbeddedModel, prompts: list[Prompt]) -> None:
    form = Form.of_choices(["yes", "no"])
    said = {one_by_one(model, prompts[:1], Generation(9, 2.0, form=form, seed=seed))[0][0] for seed in range(12)}
    assert said == {"yes", "no"}


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"not": {"type": "string"}}])
def test_a_schema_that_cannot_be_enforced_is_refused(model: EmbeddedModel, schema: dict[str, Any]) -> None:
    with pytest.raises(FormError, match="cannot be"):
        model.check_form(Form.of_json(schema))


def test_a_tokenizer_that_forms_cannot_be_laid_over(tiny_llava: Path, encoder: VisionEncoder) -> None:
    model = EmbeddedModel(str(tiny_llava))
    options = Generation(12, temperature=0)
    prompts = prompts_of(model, encoder)
    assert together(model, prompts, options) == one_by_one(model, prompts, options)  # without one it answers
    with pytest.raises(FormError, match="tokenizer"):
        model.check_form(Form.of_json())


def test_cancelling_ends_them(model: EmbeddedModel, prompts: list[Prompt]) -> None:
    cancelled = threading.Event()
    cancelled.set()
    assert model.answers(prompts, Generation(9, temperature=0), cancelled) is None


def test_only_greedy_answers_to_prompts_of_one_length(model: EmbeddedModel, prompts: list[Prompt]) -> None:
    with pytest.raises(ValueError, match="greedy"):
        model.answers(prompts, Generation(9, temperature=1), threading.Event())
    short = model.prompt([{"role": "user", "content": [{"type": "text", "text": "x"}]}], [])
    with pytest.raises(ValueError, match="one length"):
        model.answers([prompts[0], short], Generation(9, temperature=0), threading.Event())
