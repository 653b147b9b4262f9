"""What a certificate is said to mean, in words."""

from typing import Any

import numpy as np
import pytest

from fs_runtime.engine import MeasuredFidelity
from fs_runtime.options import CertificateQuery
from fs_runtime.psm import PsmFacts
from fs_runtime.robustness import certify
from fs_runtime.smoothing.feature_map import ENCODER_FEATURES, FeatureMap
from fs_runtime.smoothing.feature_statistics import Floor
from server.robustness.detail import detail_of
from server.robustness.entry import ImageEntry
from tests.unit.fs_runtime.test_robustness import DIGESTS, a_result

PSM = PsmFacts("photo", "any", 0.05, 1.0)


def entry(
    radius: float = 0.125,
    floor: Floor | None = None,
    psm: PsmFacts | None = None,
    withheld: bool = False,
    **result: Any,
) -> ImageEntry:
    certificate = certify(a_result(**result), CertificateQuery(radius), DIGESTS, floor, psm)
    return ImageEntry.of(certificate, None, None, withheld=withheld)


def test_a_bound_above_what_different_pictures_have_needs_no_words() -> None:
    high = entry(floor=Floor(0.1, 0.2))
    assert high.smoothed.best
    assert high.smoothed.best > 0.2
    assert detail_of([high, entry()]) == "every image has a certified similarity at its radius"


def test_a_bound_that_different_pictures_reach_says_little() -> None:
    low = entry(floor=Floor(0.4, 0.9999))
    assert low.smoothed.best
    assert low.smoothed.best < 0.9999
    detail = detail_of([entry(), low])
    assert "image 1" in detail
    assert "0.400 on average" in detail
    assert "does not say that the picture stays itself" in detail


def test_a_worst_token_is_not_held_beside_what_whole_pictures_have() -> None:
    assert "different pictures" not in detail_of([entry(floor=Floor(0.4, 0.9999), granularity="token")])


@pytest.mark.parametrize(
    ("image", "remedy"),
    [
        (entry(norm_lower=0.01), "ask for more samples, a larger sigma or a smaller radius"),
        (entry(radius=9.0), "more samples would hardly do; ask for a larger sigma or a smaller radius"),
        (entry(radius=9.0, sigma=1.0, psm=PSM), "more samples would hardly do; ask for a smaller radius"),
        (entry(norm_lower=0.01, sigma=1.0, psm=PSM), "ask for more samples or a smaller radius"),
        (entry(sigma=0.0), "smoothing is off, since sigma is 0"),
    ],
)
def test_the_remedy_is_one_that_helps(image: ImageEntry, remedy: str) -> None:
    assert not image.certified
    assert detail_of([image]) == f"no similarity is certified at the radius for image 0: {remedy}"


def test_images_that_are_withheld_are_named() -> None:
    assert "withheld from the language model, below what is required: image 0" in detail_of([entry(withheld=True)])


def kept(served: float) -> MeasuredFidelity:
    return MeasuredFidelity(served, served - 0.05, np.full(6, served))


@pytest.mark.parametrize(("served", "floor"), [(0.3, None), (0.8, Floor(0.7, 0.85)), (0.3, Floor(0.1, 0.2))])
def test_a_picture_that_smoothing_has_taken_away_is_named(served: float, floor: Floor | None) -> None:
    lost = entry(fidelity=kept(served), floor=floor, feature_map=ENCODER_FEATURES)
    detail = detail_of([entry(fidelity=kept(0.95)), lost])
    assert "smoothing at sigma 0.25 leaves little of image 1" in detail
    assert f"a cosine similarity of {served:.3f}" in detail
    assert ("different pictures have up to 0.850" in detail) is (floor == Floor(0.7, 0.85))


@pytest.mark.parametrize("floor", [None, Floor(0.7, 0.85)])
def test_a_picture_that_is_still_there_needs_no_words(floor: Floor | None) -> None:
    assert "leaves little" not in detail_of([entry(fidelity=kept(0.9), floor=floor), entry(sigma=0.0)])


@pytest.mark.parametrize("features", [FeatureMap("encoder", True), FeatureMap("projector", False)])
def test_features_of_which_pictures_share_less_are_judged_by_the_floor_alone(features: FeatureMap) -> None:
    def said(served: float, floor: Floor | None) -> bool:
        return "leaves little" in detail_of([entry(fidelity=kept(served), floor=floor, feature_map=features)])

    assert not said(0.5, None)  # 0.5 may be far above what different pictures share
    assert not said(0.5, Floor(0.0, 0.2))
    assert said(0.15, Floor(0.0, 0.2))
