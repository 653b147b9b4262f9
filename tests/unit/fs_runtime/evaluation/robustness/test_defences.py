import numpy as np
import pytest
import torch

from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.evaluation.robustness.defences import defences_for, serve_images


class Blur:
    fingerprint = "blur"

    def __call__(self, x, sigma):
        return torch.nn.functional.avg_pool2d(x, 3, 1, 1)


class Damp:
    fingerprint = "damp"

    def __call__(self, features, sigma, grid):
        return features - 0.5 * features.mean(dim=1, keepdim=True)


def test_rows_without_their_parts_are_left_out_and_named(defences):
    encoder = defences[0].smoother.encoder
    rows, left_out = defences_for(encoder, 0.1)
    assert [row.name for row in rows] == ["none", "FS"]
    assert left_out == {
        "FS + mapper": "there is no mapper",
        "FS + purifier": "there is no purifier",
        "FS + PSM": "there is no purifier and no mapper",
        "robust encoder": "there is no robust encoder",
        "robust encoder + FS + PSM": "there is no robust encoder and no purifier and no mapper",
    }


def test_all_rows_with_all_parts(defences, items):
    blur, damp = Blur(), Damp()
    encoder = defences[0].smoother.encoder
    robust = encoder.with_tower(torch.nn.Identity())
    rows, left_out = defences_for(encoder, 0.1, blur, damp, robust)
    assert not left_out
    assert [(row.name, row.sigma) for row in rows if row.smoother.encoder is robust] == [
        ("robust encoder", 0.0),
        ("robust encoder + FS + PSM", 0.1),
    ]
    parts = {row.name: (row.smoother.purifier, row.smoother.mapper) for row in rows}
    assert parts == {
        "none": (None, None),
        "FS": (None, None),
        "FS + mapper": (None, damp),
        "FS + purifier": (blur, None),
        "FS + PSM": (blur, damp),
        "robust encoder": (None, None),
        "robust encoder + FS + PSM": (blur, damp),
    }
    served = [serve_images(row, [items[0].image], 4, seed=0).features for row in rows[:5]]
    assert all(not torch.equal(one, other) for i, one in enumerate(served) for other in served[:i])


def test_batches_do_not_matter_and_the_bound_is_the_confidence_sequence(defences, items):
    images = [item.image for item in items]
    one, other = (serve_images(defences[1], images, 6, seed=8, batch_size=size) for size in (64, 4))
    assert torch.allclose(one.features, other.features, atol=1e-4)
    assert one.norm_lower == pytest.approx(other.norm_lower, abs=1e-5)
    state = defences[1].smoother.start(images[1], 0.1, 8 + 1)
    (products,) = defences[1].smoother.step([(state, 6)])
    sequence = NormConfidenceSequence(0.999)
    sequence.update(products.image.double().numpy())
    assert one.norm_lower[1] == pytest.approx(sequence.lower, abs=1e-6)
    assert (one.norm_lower < one.norm_estimate).all()


def test_one_sample_says_nothing_about_the_norm(defences, items):
    served = serve_images(defences[1], [items[0].image], 1, seed=0)
    assert np.isnan(served.norm_estimate).all()
    assert not served.norm_lower.any()
