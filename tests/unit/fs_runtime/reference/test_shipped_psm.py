import json

import numpy as np
import pytest
import torch

from fs_runtime.loading.engine import load_smoother
from fs_runtime.reference import reference_model_path, reference_psm_path
from fs_runtime.smoothing.smoother import Smoother
from fs_runtime.training.data import reference_pictures
from fs_runtime.training.score import HeldOut, robustness_score


@pytest.fixture(scope="module")
def smoother() -> Smoother:
    return load_smoother(str(reference_model_path()), device="cpu")


def test_the_reference_model_has_it_by_default(smoother: Smoother) -> None:
    card = json.loads((reference_psm_path() / "card.json").read_text())
    assert smoother.sigma == 0.25
    assert smoother.purifier is not None
    assert smoother.mapper is not None
    assert smoother.purifier.fingerprint == card["purifier"]["fingerprint"]
    assert smoother.mapper.fingerprint == card["mapper"]["fingerprint"]
    assert card["encoder"]["fingerprint"] == smoother.encoder.fingerprint
    assert load_smoother(str(reference_model_path()), psm="none", device="cpu").sigma == 0.05


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in reference_psm_path().iterdir()) < 10 * 2**20


def test_it_reaches_its_score_on_pictures_drawn_afresh(smoother: Smoother) -> None:
    pictures = [smoother.encoder.prepare(picture) for picture in reference_pictures(24, seed=77)]
    held_out = HeldOut(torch.stack([picture.pixels for picture in pictures]), pictures[0].grid, seed=1)
    parts = (smoother.purifier, smoother.mapper)
    assert all(isinstance(part, torch.nn.Module) for part in parts)
    bare = robustness_score(smoother.encoder, held_out, 0.25)
    whole = robustness_score(smoother.encoder, held_out, 0.25, *parts)  # type: ignore[arg-type]
    assert bare < 0.85
    assert whole > 0.98


def test_it_raises_the_norm_of_the_smoothed_feature(smoother: Smoother) -> None:
    image = smoother.encoder.prepare(np.asarray(reference_pictures(1, seed=5)[0]))
    norms = []
    for defended in (Smoother(smoother.encoder), smoother):
        state = defended.start(image, 0.25, seed=3)
        defended.step([(state, 32)])
        norms.append(defended.finish(state).norm_estimate)
    assert norms[0] is not None
    assert norms[1] is not None
    assert norms[0] < 0.95 < 0.985 < norms[1]
