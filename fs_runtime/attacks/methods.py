"""The table of attacks, each with its objective, optimiser and steps, and a function that runs any of them.

Every attack is white-box: it uses the model's parts and their gradients. Some attacks compare token features; where a
paper matches one pooled vector of a surrogate encoder, they use the mean cosine over tokens. The others differentiate
the loss of an answer's tokens through the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fs_runtime.attacks import answer_loss
from fs_runtime.attacks.answer_loss import AnswerModel
from fs_runtime.attacks.ascent import Objective, apgd, first_step_size, per_image, pgd
from fs_runtime.attacks.crops import crop, random_boxes
from fs_runtime.attacks.optimal_transport import cluster_centres, transport_cost
from fs_runtime.attacks.pipeline import FeaturePipeline, Score
from fs_runtime.attacks.similarity import token_cosine
from fs_runtime.attacks.threat_model import ThreatModel

_REFERENCE_DRAWS = 64  # for the features that an attack moves towards, or away from
_JUDGING_DRAWS = 32  # for the choice between restarts
_MOMENTUM = 0.9  # of targeted attacks; with falling steps they converge better than with the papers' constant steps
_FOA_CLUSTERS, _FOA_WEIGHT = 5, 0.2  # K and λ of a public implementation


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        name: As in ``ATTACKS``.
        targeted: Whether it moves towards a target (features or answer) instead of away from the image's own.
        score: The objective to maximise, a function of token features or of an answer's logits and tokens.
        reads: What ``score`` takes: ``features``; logits and tokens of the ``answer`` to the smoothed image; or those
            of the answers to noisy ``copies``.
        path: Optimiser, ``pgd`` or ``apgd``.
        steps: Gradient steps of each restart.
        momentum: Of PGD.
        restarts: Number of starts; the best result is kept. They are random, but a targeted attack starts at the image
            first.
        crops: Also compare a fresh random crop of image and target at every step, with half of the weight.
    """

    name: str
    targeted: bool
    score: Score
    reads: Literal["features", "answer", "copies"] = "features"
    path: Literal["pgd", "apgd"] = "pgd"
    steps: int = 40
    momentum: float = 0.0
    restarts: int = 1
    crops: bool = False


def pgd_attack(steps: int = 40, restarts: int = 1) -> Attack:
    """PGD away from the image's own features.

    Source: Madry et al., arXiv 1706.06083.
    """
    return Attack("pgd", False, _negative_cosine, steps=steps, restarts=restarts)


def apgd_attack(steps: int = 40, restarts: int = 1) -> Attack:
    """APGD away from the image's own features. Source: Croce and Hein, arXiv 2003.01690, Algorithm 1."""
    return Attack("apgd", False, _negative_cosine, path="apgd", steps=steps, restarts=restarts)


def attack_vlm(steps: int = 100, restarts: int = 1) -> Attack:
    """AttackVLM, image-to-image feature matching (MF-ii): the features of a target image, by PGD.

    Source: Zhao et al., "On Evaluating Adversarial Robustness of Large Vision-Language Models", NeurIPS 2023
    (arXiv 2305.16934), section 3: 100 steps.
    """
    return Attack("attackvlm", True, token_cosine, steps=steps, momentum=_MOMENTUM, restarts=restarts)


def m_attack(steps: int = 300, restarts: int = 1) -> Attack:
    """M-Attack: matches random local crops of the image to the target's, over all encoders given, weighted equally.

    Image and target are cropped to the same box, since tokens are compared position by position. The whole images are
    compared as well: a small encoder's features of a crop differ so much that crops alone hardly change the whole's.

    Source: Li et al., "A Frustratingly Simple Yet Highly Effective Attack Baseline", arXiv 2503.10635: 300 signed steps
    of 1/255 at ε = 16/255.
    """
    return Attack("m-attack", True, token_cosine, steps=steps, momentum=_MOMENTUM, restarts=restarts, crops=True)


def foa_attack(steps: int = 300, restarts: int = 1) -> Attack:
    """FOA-Attack: M-Attack's crops, with the transport cost between clusters of local tokens in addition to the cosine.

    Source: Jia et al., "Adversarial Attacks against Closed-Source MLLMs via Feature Optimal Alignment",
    arXiv 2505.21494. Encoders are weighted equally; the paper adapts the weights.
    """
    return Attack("foa", True, foa_score, steps=steps, momentum=_MOMENTUM, restarts=restarts, crops=True)


def apgd_ce_attack(steps: int = 100, restarts: int = 1) -> Attack:
    """APGD on the cross-entropy of the right answer's tokens.

    Source: Schlarmann and Hein, arXiv 2308.10741; 100 steps as AutoAttack has (Croce and Hein, arXiv 2003.01690).
    """
    return _on_answer("apgd-ce", False, answer_loss.cross_entropy, steps, restarts)


def apgd_dlr_attack(steps: int = 100, restarts: int = 1) -> Attack:
    """APGD on the difference of logits ratio of the right answer's weakest token. Source: as ``apgd-ce``."""
    return _on_answer("apgd-dlr", False, answer_loss.dlr_loss, steps, restarts)


def apgd_cw_attack(steps: int = 100, restarts: int = 1) -> Attack:
    """APGD on the margin of the right answer's weakest token; the loss is Carlini and Wagner's, arXiv 1608.04644."""
    return _on_answer("apgd-cw", False, answer_loss.margin_loss, steps, restarts)


def apgd_ce_targeted_attack(steps: int = 100, restarts: int = 1) -> Attack:
    """APGD that lowers the cross-entropy of the target answer over all its tokens; margins of one token work worse.

    Source: as ``apgd-ce``.
    """
    return _on_answer("apgd-ce-targeted", True, answer_loss.negative_cross_entropy, steps, restarts)


def vote_attacks(steps: int = 40, restarts: int = 1) -> tuple[Attack, ...]:
    """APGD on the vote of noisy copies on an answer, by each of two losses: neither is always the stronger one.

    Where all copies agree the likelihood is flat, and PGD does not leave its start. The attacks are no part of
    ``ATTACKS``, which change the answer to the smoothed image.
    """
    losses = {
        "vote-likelihood": answer_loss.vote_likelihood_loss,
        "vote-margin": answer_loss.vote_margin_loss,
    }
    return tuple(
        Attack(name, False, loss, reads="copies", path="apgd", steps=steps, restarts=restarts)
        for name, loss in losses.items()
    )


def _on_answer(name: str, targeted: bool, score: Score, steps: int, restarts: int) -> Attack:
    return Attack(name, targeted, score, reads="answer", path="apgd", steps=steps, restarts=restarts)


ATTACKS: dict[str, Callable[..., Attack]] = {
    "pgd": pgd_attack,
    "apgd": apgd_attack,
    "attackvlm": attack_vlm,
    "m-attack": m_attack,
    "foa": foa_attack,
    "apgd-ce": apgd_ce_attack,
    "apgd-dlr": apgd_dlr_attack,
    "apgd-cw": apgd_cw_attack,
    "apgd-ce-targeted": apgd_ce_targeted_attack,
}
"""Factories by name; each takes ``steps`` and ``restarts``."""


def run_attack(
    attack: Attack,
    pipelines: Sequence[FeaturePipeline],
    images: Tensor,
    threat: ThreatModel,
    *,
    targets: Tensor | None = None,
    answers: AnswerModel | None = None,
    seed: int = 0,
    report: Callable[[], None] | None = None,
) -> Tensor:
    """Attacks a batch of images.

    Args:
        attack: Which one.
        pipelines: The models under attack; values and gradients are averaged over them. σ = 0 is the undefended model.
            With σ > 0 the attack is adaptive, and each step averages the pipeline's number of fresh draws.
        images: ``(B, C, H, W)`` in [0, 1].
        threat: Ball and box.
        targets: ``(B, C, H, W)`` images whose features a targeted attack on features moves towards.
        answers: For an attack on answers or votes: the language model with a question and an answer for each image,
            the right answer or, for a targeted attack, the wanted one.
        seed: Of random starts and crops.
        report: Called after every gradient.

    Returns:
        ``(B, C, H, W)`` attacked images, within the ball and the box.

    Raises:
        ValueError: There is no pipeline, an attack on answers has no answers, or a targeted one on features no targets.
    """
    if not pipelines:
        raise ValueError("an attack needs at least one pipeline")
    goal = images
    if attack.reads != "features":
        score = answer_score(attack, answers)
        by_copy = attack.reads == "copies"
        pipelines = [pipeline.by_copy() if by_copy else pipeline.embedded() for pipeline in pipelines]
        references = [torch.arange(len(images), device=images.device)] * len(pipelines)
    else:
        if attack.targeted and targets is None:
            raise ValueError(f"{attack.name} is targeted: give targets, one image for each image")
        goal = images if targets is None or not attack.targeted else targets
        score = attack.score
        references = [_with_fixed_draws(pipeline, _REFERENCE_DRAWS, seed).features(goal) for pipeline in pipelines]
    generator = torch.Generator(images.device).manual_seed(seed)
    objective = _objective(score, attack.crops, pipelines, references, goal, generator, report)
    judges = [_with_fixed_draws(pipeline, _JUDGING_DRAWS, seed + 1) for pipeline in pipelines]
    best, best_value = images, torch.full((len(images),), -torch.inf, device=images.device)
    for restart in range(attack.restarts):
        # Without a target, the cosine has no gradient at the image, so start elsewhere; with a target, start there.
        start = images if attack.targeted and restart == 0 else threat.random_start(images, generator)
        if attack.path == "apgd":
            found = apgd(objective, start, images, threat, steps=attack.steps)
        else:
            noisy = attack.crops or any(pipeline.stochastic for pipeline in pipelines)
            found = pgd(
                objective,
                start,
                images,
                threat,
                steps=attack.steps,
                step_size=first_step_size(attack.steps),
                momentum=attack.momentum,
                keep_best=not noisy,
            )
        if attack.restarts == 1:
            return found
        value = mean_scores(score, judges, references, found)
        best = torch.where(per_image(value > best_value, best), found, best)
        best_value = torch.maximum(value, best_value)
    return best


def answer_score(attack: Attack, answers: AnswerModel | None) -> Score:
    """The objective of an attack on answers, as a function of embeddings and question numbers.

    Raises:
        ValueError: ``answers`` is None.
    """
    if answers is None:
        raise ValueError(f"{attack.name} attacks answers: give the language model with questions and answers")

    def score(embeddings: Tensor, rows: Tensor) -> Tensor:
        if attack.reads == "answer":
            return attack.score(*answers(embeddings, rows))
        copies = embeddings.shape[1]
        logits, tokens = answers(embeddings.flatten(0, 1), rows.repeat_interleave(copies))
        return attack.score(logits.view(-1, copies, *logits.shape[1:]), tokens.view(-1, copies, *tokens.shape[1:]))

    return score


def mean_scores(
    score: Score, pipelines: Sequence[FeaturePipeline], references: Sequence[Tensor], images: Tensor
) -> Tensor:
    """``(B,)`` scores of images, averaged over the pipelines, without gradients."""
    values = [
        score(pipeline.features(images), reference) for pipeline, reference in zip(pipelines, references, strict=True)
    ]
    return torch.stack(values).mean(dim=0)


def foa_score(features: Tensor, reference: Tensor) -> Tensor:
    """Global cosine plus 0.2 times the transported cosine (1 - cost) between five clusters: ``(B,)``."""
    count = min(_FOA_CLUSTERS, features.shape[1])
    cost = transport_cost(cluster_centres(features, count), cluster_centres(reference, count))
    return token_cosine(features, reference) + _FOA_WEIGHT * (1 - cost)


def _negative_cosine(features: Tensor, reference: Tensor) -> Tensor:
    return -token_cosine(features, reference)


def _with_fixed_draws(pipeline: FeaturePipeline, draws: int, seed: int) -> FeaturePipeline:
    """The pipeline with fixed draws, so that its values can be compared; unchanged if its draws are fixed already."""
    return pipeline if pipeline.fixed else pipeline.with_options(draws=draws, seed=seed, fixed=True)


def _objective(
    score: Score,
    crops: bool,
    pipelines: Sequence[FeaturePipeline],
    references: Sequence[Tensor],
    goal: Tensor,
    generator: torch.Generator,
    report: Callable[[], None] | None,
) -> Objective:
    def whole(x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [
            pipeline.value_and_gradient(x, reference, score)
            for pipeline, reference in zip(pipelines, references, strict=True)
        ]
        return _averages(pairs)

    def cropped(x: Tensor) -> tuple[Tensor, Tensor]:
        boxes = random_boxes(len(x), generator)
        leaf = x.detach().requires_grad_()
        part, goal_part = crop(leaf, boxes), crop(goal, boxes)
        pairs = [pipeline.value_and_gradient(part, pipeline.features(goal_part), score) for pipeline in pipelines]
        value, gradient = _averages(pairs)
        return value, torch.autograd.grad(part, leaf, gradient)[0]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        result = _averages([whole(x), cropped(x)]) if crops else whole(x)
        if report:
            report()
        return result

    return objective


def _averages(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, gradients = zip(*pairs, strict=True)
    return torch.stack(values).mean(dim=0), torch.stack(gradients).mean(dim=0)
