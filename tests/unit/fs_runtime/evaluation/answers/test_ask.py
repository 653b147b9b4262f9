"""Votes on the reference model, against each copy made by hand: noise, networks, one answer at a time."""

import threading

import numpy as np
import pytest
import torch

from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.embedded import Form, Generation
from fs_runtime.evaluation.answers.plan import VotePlan
from fs_runtime.evaluation.answers.records import VoteKey
from fs_runtime.smoothing.noise import NoiseStream

SIGMA, SEED = 0.5, 7
PLAN = VotePlan((SIGMA,), (16, 24))


@pytest.fixture(scope="module")
def item(questions):
    """A question on which the copies disagree at this noise level."""
    return questions[2]


@pytest.fixture(scope="module")
def record(asker, item):
    return asker.votes_on(VoteKey(2, SIGMA), item, PLAN, SEED)


@pytest.fixture(scope="module")
def copies(asker, item):
    """``(24, T, D)`` features of the copies."""
    smoother = asker.smoother
    image = smoother.encoder.prepare(item.read())
    noise = torch.empty(24, *image.pixels.shape)
    NoiseStream(SEED, torch.device("cpu")).draw(noise)
    with torch.inference_mode():
        return smoother.features(image.pixels + SIGMA * noise, torch.full((24,), SIGMA), image.grid, noisy=True)


def one_answer(asker, item, features, choices=None):
    image = asker.smoother.encoder.prepare(item.read())
    with torch.inference_mode():
        payload = asker.smoother.encoder.payload(asker.smoother.encoder.project(features[None], image.grid)[0], image)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": item.question}]}]
    options = Generation(64, 0.0, form=None if choices is None else Form.of_choices(choices))
    prompt = asker.language.prompt(messages, [payload])
    return "".join(piece.text for piece in asker.language.generate(prompt, options, threading.Event()))


def texts(votes):
    return [votes.texts[number] for number in votes.copies]


def test_every_copy_is_asked_about_by_itself(asker, item, record, copies):
    assert texts(record.votes["text"]) == [one_answer(asker, item, copy) for copy in copies]
    assert len(set(texts(record.votes["text"]))) > 1
    assert record.votes["text"].finished == [True] * len(record.votes["text"].texts)


def test_answers_held_to_choices(asker, item, record, copies):
    """Also those that are taken from the free answers, which are greedy among the choices, too."""
    held = texts(record.votes["choices"])
    assert held == [one_answer(asker, item, copy, item.choices) for copy in copies]
    assert set(held) <= set(item.choices)
    free = texts(record.votes["text"])
    assert any(one in item.choices for one in free)


def test_choices_that_no_free_answer_is(asker, item):
    other = type(item)(item.kind, item.question, "a", ("a", "b"), item.digest, item.read)
    held = asker.votes_on(VoteKey(2, SIGMA), other, PLAN, SEED).votes["choices"]
    assert set(held.texts) <= {"a", "b"}


def test_the_smoothed_answer_and_the_norm_of_each_n(asker, item, record, copies):
    unit = torch.nn.functional.normalize(copies, dim=-1).double()
    lengths = copies.norm(dim=-1).double()
    for index, n in enumerate(PLAN.samples):
        direction = torch.nn.functional.normalize(unit[:n].mean(0), dim=-1)
        smoothed = (direction * lengths[:n].mean(0)[:, None]).float()
        assert record.smoothed["text"][index] == one_answer(asker, item, smoothed)
        sums = unit[:n].cumsum(0)[:-1].flatten(1)
        products = (unit[1:n].flatten(1) * sums).sum(1) / sums.norm(dim=1) / unit.shape[1] ** 0.5
        sequence = NormConfidenceSequence(PLAN.confidence)
        sequence.update(np.asarray(products))
        assert record.norm_lower[index] == pytest.approx(float(sequence.lower), abs=1e-4)


def test_the_answer_without_noise(asker, item, record):
    image = asker.smoother.encoder.prepare(item.read())
    with torch.inference_mode():
        clean = asker.smoother.encoder.encode(image.pixels[None])[0]
    assert record.clean["text"] == one_answer(asker, item, clean)
    assert record.clean["text"] == item.answer


def test_a_cut_answer_is_not_finished(asker, item):
    short = type(asker)(asker.smoother, asker.language, max_new_tokens=2)
    votes = short.votes_on(VoteKey(2, SIGMA), item, VotePlan((SIGMA,), (16,)), SEED).votes["text"]
    assert votes.finished == [False] * len(votes.texts)


def test_fresh_answers_go_on(asker, item, record):
    image = asker.smoother.encoder.prepare(item.read())
    fresh = asker.fresh_answers(image, item.question, SIGMA, SEED)
    assert [next(fresh).text for _ in range(24)] == texts(record.votes["text"])
