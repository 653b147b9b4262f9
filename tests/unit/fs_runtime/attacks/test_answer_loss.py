"""Losses of answers, by hand and on the reference model."""

import math

import pytest
import torch

from fs_runtime.attacks import ATTACKS, FeaturePipeline, ThreatModel, check_gradient_masking, run_attack
from fs_runtime.attacks.answer_loss import (
    IGNORED,
    cross_entropy,
    dlr_loss,
    margin_loss,
    negative_cross_entropy,
    vote_likelihood_loss,
    vote_margin_loss,
)
from fs_runtime.attacks.methods import vote_attacks
from fs_runtime.evaluation.robustness.answers import Answerer
from fs_runtime.evaluation.robustness.defences import Defence, serve_images
from fs_runtime.evaluation.robustness.items import with_pixels
from fs_runtime.reference import reference_model_path

QUESTIONS = ["How many shapes are there?", "Describe the image.", "What is shown here?"]

# Two answers of two tokens and of one; the vocabulary has four.
LOGITS = torch.tensor([[[4.0, 1.0, 0.0, 0.0], [0.0, 3.0, 2.0, -2.0]], [[0.0, 0.0, 1.0, 3.0], [9.0, 0.0, 0.0, 0.0]]])
TOKENS = torch.tensor([[0, 1], [2, IGNORED]])


def test_margins_by_hand():
    """The weaker token of the first answer leads by 1; the second answer's is 2 behind, and its padding is not read."""
    assert margin_loss(LOGITS, TOKENS).tolist() == [-1.0, 2.0]


def test_dlr_by_hand():
    """Of the first answer the ratios are 3 / (4 - 0) and 1 / (3 - 0), of the second -2 / (3 - 0)."""
    assert dlr_loss(LOGITS, TOKENS).tolist() == pytest.approx([-1 / 3, 2 / 3])
    assert dlr_loss(5 * LOGITS + 2, TOKENS).tolist() == pytest.approx([-1 / 3, 2 / 3])


def test_cross_entropy_by_hand():
    first = math.log(sum(map(math.exp, (4, 1, 0, 0)))) - 4
    second = math.log(sum(map(math.exp, (0, 3, 2, -2)))) - 3
    other = math.log(sum(map(math.exp, (0, 0, 1, 3)))) - 1
    assert cross_entropy(LOGITS, TOKENS).tolist() == pytest.approx([(first + second) / 2, other])
    assert torch.equal(negative_cross_entropy(LOGITS, TOKENS), -cross_entropy(LOGITS, TOKENS))


def test_losses_of_a_vote_by_hand():
    """One image with two copies: their answers have probabilities of e^-(a + b) and e^-c, and margins of -1 and 2."""
    first = math.log(sum(map(math.exp, (4, 1, 0, 0)))) - 4 + math.log(sum(map(math.exp, (0, 3, 2, -2)))) - 3
    other = math.log(sum(map(math.exp, (0, 0, 1, 3)))) - 1
    likelihood = (math.exp(-first) + math.exp(-other)) / 2
    assert vote_likelihood_loss(LOGITS[None], TOKENS[None]).tolist() == pytest.approx([-math.log(likelihood)])
    assert vote_margin_loss(LOGITS[None], TOKENS[None]).tolist() == [0.0]  # a lead of 2 counts as 1
    two = vote_margin_loss(torch.stack([LOGITS, LOGITS.flip(0)]), torch.stack([TOKENS, TOKENS.flip(0)]))
    assert two.tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(reference_model_path())


def served(smoother, prepared, pixels, sigma=0.0, samples=1):
    images = [with_pixels(image, one) for image, one in zip(prepared, pixels, strict=True)]
    return serve_images(Defence("row", smoother, sigma), images, samples, seed=0).embeddings


@pytest.fixture(scope="module")
def answers(answerer, smoother, prepared, images) -> list[str]:
    return answerer.answer(QUESTIONS, served(smoother, prepared[:3], images))


def test_the_margin_says_whether_an_answer_is_given(answerer, smoother, prepared, images, answers):
    """Greedy answers lead at every token; other answers do not, in a batch of any order."""
    embeddings = served(smoother, prepared[:3], images)
    tokens = embeddings.shape[1]
    own = answerer.scorer(QUESTIONS, answers, tokens)
    rows = torch.arange(3)
    assert (margin_loss(*own(embeddings, rows)) < 0).all()
    order = torch.tensor([2, 0, 1])
    expected = cross_entropy(*own(embeddings, rows))[order]
    assert torch.allclose(cross_entropy(*own(embeddings[order], order)), expected, atol=1e-5)
    longer = [answer.removesuffix(".") + " and a red circle." for answer in answers]
    assert (margin_loss(*answerer.scorer(QUESTIONS, longer, tokens)(embeddings, rows)) > 0).all()
    shorter = [answer.removesuffix(".") for answer in answers]  # the end of the answer counts, too
    assert (margin_loss(*answerer.scorer(QUESTIONS, shorter, tokens)(embeddings, rows)) > 0).all()


def test_embeddings_are_the_servers(smoother, prepared, images):
    """An adaptive attack sees the embeddings that the server computes from the same number of draws."""
    pipeline = FeaturePipeline(smoother, 0.1, prepared[0].grid, draws=256).embedded()
    smoothed = served(smoother, prepared[:3], images, 0.1, 256)
    found = pipeline.features(images)
    assert torch.nn.functional.cosine_similarity(found, smoothed, dim=-1).min() > 0.99
    assert torch.allclose(found.norm(dim=-1), smoothed.norm(dim=-1), rtol=0.1)
    plain = FeaturePipeline(smoother, 0.0, prepared[0].grid).embedded()
    assert torch.allclose(plain.features(images), served(smoother, prepared[:3], images), atol=1e-4)


@pytest.mark.parametrize("name", [name for name, make in ATTACKS.items() if make().reads == "answer"])
def test_attacks_change_answers(name, answerer, smoother, prepared, images, undefended):
    """Untargeted attacks change every answer, targeted attacks reach their target answer, within ball and box."""
    attack = ATTACKS[name](steps=25)
    threat = ThreatModel.of_size("linf", 16 / 255, images.shape[1:])
    question = QUESTIONS[:1] * 3
    own = answerer.answer(question, served(smoother, prepared[:3], images))
    wanted = ["There are two shapes."] * 3 if attack.targeted else own
    scorer = answerer.scorer(question, wanted, undefended.embedded().features(images).shape[1])
    found = run_attack(attack, [undefended], images, threat, answers=scorer)
    assert float((found - images).abs().max()) <= threat.epsilon * (1 + 1e-5)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    given = answerer.answer(question, served(smoother, prepared[:3], found))
    assert all((one == other) == attack.targeted for one, other in zip(given, wanted, strict=True))


def test_an_adaptive_attack_raises_the_loss_under_fresh_noise(answerer, defended, images, answers):
    threat = ThreatModel.of_size("linf", 8 / 255, images.shape[1:])
    scorer = answerer.scorer(QUESTIONS, answers, defended.embedded().features(images).shape[1])
    found = run_attack(ATTACKS["apgd-ce"](steps=6), [defended], images, threat, answers=scorer, seed=3)
    judge = defended.with_options(draws=64, seed=77, fixed=True).embedded()
    before, after = (cross_entropy(*scorer(judge.features(x), torch.arange(3))) for x in (images, found))
    assert (after > before + 0.1).all()


@pytest.mark.parametrize("attack", vote_attacks(steps=6), ids=lambda attack: attack.name)
def test_an_attack_on_the_vote_raises_its_loss_under_fresh_noise(attack, answerer, defended, images, answers):
    threat = ThreatModel("l2", 1.5)
    scorer = answerer.scorer(QUESTIONS, answers, defended.embedded().features(images).shape[1])
    found = run_attack(attack, [defended], images, threat, answers=scorer, seed=3)
    assert float(threat.size(found - images).max()) <= 1.5 * (1 + 1e-5)
    judge = defended.with_options(draws=32, seed=77, fixed=True).by_copy()
    before, after = (
        attack.score(*(each.view(3, 32, *each.shape[1:]) for each in scorer(judge.features(x).flatten(0, 1), rows)))
        for x in (images, found)
        for rows in (torch.arange(3).repeat_interleave(32),)
    )
    assert (after > before + 0.1).all()


def test_gradients_to_the_answer_are_not_masked(answerer, defended, undefended, images, answers):
    threat = ThreatModel.of_size("linf", 4 / 255, images.shape[1:])
    scorer = answerer.scorer(QUESTIONS, answers, undefended.embedded().features(images).shape[1])
    report = check_gradient_masking(
        ATTACKS["apgd-ce"](steps=4), defended, undefended, images, threat, answers=scorer, seed=1
    )
    assert report.passed, report.markdown()


def test_an_attack_on_answers_needs_them(undefended, images):
    with pytest.raises(ValueError, match="language model"):
        run_attack(ATTACKS["apgd-ce"](), [undefended], images, ThreatModel("linf", 0.1))
