"""Answers from embeddings are those of the whole model, and items are what they claim to be."""

import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.robustness.defences import serve_images
from fs_runtime.evaluation.robustness.items import KINDS, evaluation_items
from fs_runtime.reference import reference_model_path
from fs_runtime.reference.evaluate import answer_all, held_out_items, load_model


def test_answers_without_noise_are_those_of_the_whole_model(defences, answerer):
    asked = [item for item in held_out_items(8, seed=5) if item.kind in KINDS][:12]
    whole = answer_all(*load_model(reference_model_path()), [item.messages for item in asked])
    parts = [item.messages[0]["content"] for item in asked]
    images = [defences[0].smoother.encoder.prepare(np.asarray(picture["image"])) for picture, _ in parts]
    served = serve_images(defences[0], images, 1, seed=0)
    assert answerer.answer([text["text"] for _, text in parts], served.embeddings) == whole


def test_items_are_answered_correctly_and_targets_otherwise(items, defences, answerer):
    questions = [item.question for item in items]
    own, other = (
        answerer.answer(questions, serve_images(defences[0], pictures, 1, seed=0).embeddings)
        for pictures in ([item.image for item in items], [item.target for item in items])
    )
    assert own == [item.answer for item in items]
    assert other == [item.target_answer for item in items]
    assert all(item.answer != item.target_answer for item in items)
    assert len({item.kind for item in items}) == 4


def test_items_repeat_with_the_seed(items, defences, answerer):
    again = evaluation_items(4, defences[0], answerer, seed=3)
    assert [(i.question, i.answer, i.target_answer) for i in again] == [
        (i.question, i.answer, i.target_answer) for i in items
    ]


def test_the_fingerprint_is_that_of_the_language_part(answerer, tmp_path):
    """It depends neither on the folder nor on earlier questions; any change of the language model changes it."""
    model = tmp_path / "model"
    shutil.copytree(reference_model_path(), model)
    assert Answerer(model).fingerprint == answerer.fingerprint
    weights = load_file(model / "model.safetensors")
    (tower,) = [name for name in weights if name.endswith("vision_model.pre_layrnorm.weight")]
    (last,) = [name for name in weights if name.endswith("language_model.model.norm.weight")]
    for name, same in ((tower, True), (last, False)):
        save_file(weights | {name: weights[name] * 1.01}, model / "model.safetensors", {"format": "pt"})
        assert (Answerer(model).fingerprint == answerer.fingerprint) == same
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    for file, old, new in (
        ("generation_config.json", '"max_new_tokens": 64', '"max_new_tokens": 63'),
        ("chat_template.jinja", "{#- Text", "{#- The text"),
    ):
        text = (model / file).read_text()
        (model / file).write_text(text.replace(old, new, 1))
        assert Answerer(model).fingerprint != answerer.fingerprint
        (model / file).write_text(text)


def test_more_images_than_digits(defences, answerer):
    with pytest.raises(ValueError, match="held-out digits"):
        evaluation_items(4000, defences[0], answerer, seed=3)
