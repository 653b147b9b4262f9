"""Each attack stays in its ball and its box, and raises its own objective."""

import pytest
import torch

from fs_runtime.attacks import ATTACKS, ThreatModel, run_attack
from fs_runtime.attacks.crops import CROP_AREA, crop, random_boxes
from fs_runtime.attacks.methods import mean_scores

SIZE = 8 / 255


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", [name for name, make in ATTACKS.items() if make().reads == "features"])
def test_attacks_undefended(name, norm, undefended, images, targets):
    threat = ThreatModel.of_size(norm, SIZE, images.shape[1:])
    attack = ATTACKS[name](steps=8)
    found = run_attack(attack, [undefended], images, threat, targets=targets)
    assert float(threat.size(found - images).max()) <= threat.epsilon * (1 + 1e-5)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    goal = targets if attack.targeted else images
    references = [undefended.features(goal)]
    before, after = (mean_scores(attack.score, [undefended], references, x) for x in (images, found))
    assert (after > before + 0.02).all()


@pytest.mark.parametrize("name", ["apgd", "attackvlm"])
def test_adaptive_attack_beats_the_one_made_on_the_undefended_model(name, undefended, defended, images, targets):
    threat = ThreatModel.of_size("l2", SIZE, images.shape[1:])
    attack = ATTACKS[name](steps=10)
    judge = defended.with_options(draws=64, fixed=True, seed=9)
    references = [judge.features(targets if attack.targeted else images)]
    fixed, adaptive = (
        mean_scores(attack.score, [judge], references, run_attack(attack, [p], images, threat, targets=targets)).mean()
        for p in (undefended, defended)
    )
    assert adaptive > fixed


def test_every_step_of_an_adaptive_attack_draws_fresh_noise(smoother, defended, images):
    """No noisy copy is the same at two steps, although the first step of zero size leaves the image where it is."""
    seen = []

    class Watched(type(smoother)):
        def features(self, x, sigma, grid, *, noisy):
            seen.append(x.detach().clone())
            return super().features(x, sigma, grid, noisy=noisy)

    pipeline = defended.with_options()
    pipeline.smoother = Watched(smoother.encoder)
    reference = defended.features(images)
    for _ in range(3):
        pipeline.value_and_gradient(images, reference, ATTACKS["pgd"]().score)
    copies = torch.cat(seen)
    assert len(copies) == 3 * 8 * len(images)
    assert len(torch.unique(copies.flatten(1), dim=0)) == len(copies)


def test_restarts_keep_the_best(undefended, images):
    threat = ThreatModel.of_size("linf", SIZE, images.shape[1:])
    references = [undefended.features(images)]
    one, three = (
        mean_scores(attack.score, [undefended], references, run_attack(attack, [undefended], images, threat, seed=4))
        for attack in (ATTACKS["pgd"](steps=4, restarts=n) for n in (1, 3))
    )
    assert (three >= one).all()
    assert (three > one).any()


def test_several_encoders_are_averaged(undefended, defended, images, targets):
    threat = ThreatModel.of_size("l2", SIZE, images.shape[1:])
    both = [undefended, defended.with_options(fixed=True)]
    attack = ATTACKS["m-attack"](steps=6)
    references = [pipeline.features(targets) for pipeline in both]
    found = run_attack(attack, both, images, threat, targets=targets)
    for pipeline, reference in zip(both, references, strict=True):
        before, after = (mean_scores(attack.score, [pipeline], [reference], x) for x in (images, found))
        assert (after > before).all()


@pytest.mark.parametrize("steps", [4, 10, 40])
def test_pgd_reaches_the_edge_of_the_ball_in_few_steps_and_in_many(steps, undefended, images, targets):
    """From the image itself, where targeted attacks start."""
    threat = ThreatModel("linf", SIZE)
    found = run_attack(ATTACKS["attackvlm"](steps=steps), [undefended], images, threat, targets=targets)
    assert (threat.size(found - images) > 0.99 * SIZE).all()


def test_missing_arguments(undefended, images):
    threat = ThreatModel("linf", SIZE)
    with pytest.raises(ValueError, match="targets"):
        run_attack(ATTACKS["foa"](), [undefended], images, threat)
    with pytest.raises(ValueError, match="pipeline"):
        run_attack(ATTACKS["pgd"](), [], images, threat)


def test_boxes_lie_in_the_image_and_have_the_areas_of_the_paper():
    boxes = random_boxes(500, torch.Generator().manual_seed(0))
    width, height, across, down = boxes[:, 0, 0], boxes[:, 1, 1], boxes[:, 0, 2], boxes[:, 1, 2]
    area = width * height
    assert float(area.min()) >= CROP_AREA[0] * 0.85  # a side that would be too long is cut
    assert float(area.max()) <= CROP_AREA[1] + 1e-6
    assert float((across.abs() + width).max()) <= 1 + 1e-6
    assert float((down.abs() + height).max()) <= 1 + 1e-6


def test_crop_by_hand():
    x = torch.zeros(1, 1, 4, 4)
    x[..., :2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    upper_left = torch.tensor([[[0.5, 0.0, -0.5], [0.0, 0.5, -0.5]]])
    enlarged = crop(x, upper_left)[0, 0]
    assert enlarged[1, 1] == pytest.approx(1.75)  # bilinear, a quarter of a pixel in from the first centre
    assert enlarged[0, 0] == pytest.approx(1.0)  # the border is repeated
    assert torch.allclose(crop(x, torch.eye(2, 3)[None]), x)
