"""From the outcome of the pass to the certificate: every number is the one that the proven functions give."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from fs_runtime.certificate import (
    Spread,
    certified_radius,
    fcsb,
    served_similarity,
    spectral_radius,
    spectral_similarity,
    tight_similarity,
)
from fs_runtime.engine import CertificateTerms, MeasuredFidelity, SmoothingResult
from fs_runtime.options import CertificateQuery
from fs_runtime.robustness import Fingerprints, ImageRobustness, certify
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.feature_statistics import Floor

TERMS = CertificateTerms(0.25, 0.999, feature_map=FeatureMap("projector", True), spectral=True)
DIGESTS = Fingerprints("sha256:x", None, None)


def a_result(**changes: Any) -> SmoothingResult:
    """A result with other values in it, or in its terms."""
    terms = {field.name: changes.pop(field.name) for field in fields(TERMS) if field.name in changes}
    result = SmoothingResult(
        payload={},
        terms=replace(TERMS, **terms),
        samples=256,
        max_samples=512,
        planned=512,
        ended="samples",
        norm_lower=0.9,
        norm_estimate=0.95,
        token_norm_lower=None,
        fidelity=None,
        spread=None,
        spread_estimate=None,
        spread_samples=0,
        spectral_norm=0.5,
        token_grids=((2, 3),),
        seed=1,
        queue_seconds=0.0,
        smoothing_seconds=0.1,
    )
    return replace(result, **changes)


def certificate(query: CertificateQuery | None = None, **changes: Any) -> ImageRobustness:
    return certify(a_result(**changes), query or CertificateQuery(0.125), DIGESTS)


def test_nothing_certified_satisfies_nothing() -> None:
    assert certificate(CertificateQuery(9.0, min_similarity=0.0)).satisfied is False
    assert certificate(CertificateQuery(0.125, min_similarity=0.0)).satisfied is True


def test_without_spread_the_best_bound_is_tight() -> None:
    found = certificate()
    assert found.smoothed.best == found.smoothed.tight == tight_similarity(0.9, 0.125, 0.25)
    assert found.smoothed.spectral is found.spread is None
    assert found.smoothed.fcsb == fcsb(0.95, 0.125, 0.25)
    assert found.served.best == served_similarity(0.9, 0.125, 0.25, 256, 0.999, 512, share=0.75)
    assert found.certified_radius[0].best.model == certified_radius(0.9, 0.25, 0.5)
    assert (found.stage, found.centred, found.curve, found.token_map) == ("projector", True, None, None)


def test_with_spread_everything_rests_on_the_spectral_bound() -> None:
    spread = Spread(0.01, 0.03)
    found = certificate(spread=spread, spread_estimate=0.001)
    assert found.smoothed.best == found.smoothed.spectral == spectral_similarity(0.9, spread, 0.125, 0.25)
    assert found.smoothed.best > (found.smoothed.tight or 0)
    assert found.certified_radius[0].best.model == spectral_radius(0.9, spread, 0.25, 0.5)
    assert found.served.best == served_similarity(0.9, 0.125, 0.25, 256, 0.999, 512, found.smoothed.best, 0.75)
    assert found.estimate.best > found.smoothed.best


def test_client_space_scales_by_the_spectral_norm() -> None:
    found = certificate(CertificateQuery(0.5, "client"))
    assert (found.radius.model, found.radius.client) == (0.25, 0.5)
    assert found.certified_radius[0].tight.client == pytest.approx(2 * found.certified_radius[0].tight.model)


def test_min_similarity_is_judged_by_the_best_bound() -> None:
    spread = Spread(0.005, 0.01)
    wanted = CertificateQuery(0.25, min_similarity=0.93)
    assert certificate(wanted).satisfied is False
    assert certificate(wanted, spread=spread).satisfied is True
    assert [radius.similarity for radius in certificate(wanted).certified_radius] == [0.5, 0.93]


def test_token_map_is_the_tight_bound_of_every_token() -> None:
    norms = np.array([0.0, 0.5, 0.9, 0.95, 0.99, 1.0])
    found = certificate(token_norm_lower=norms)
    assert found.token_map is not None
    assert found.token_map.similarity == tight_similarity(norms, 0.125, 0.25).reshape(2, 3).tolist()


def test_without_noise_nothing_is_certified() -> None:
    found = certificate(CertificateQuery(0.1, curve=True), sigma=0.0, token_norm_lower=np.ones(6))
    assert found.certified is False
    assert (found.served.best, found.curve, found.token_map) == (None, None, None)
    assert found.certified_radius[0].best.model == 0.0


def test_the_floor_is_handed_on() -> None:
    floor = Floor(0.7, 0.8)
    assert certify(a_result(), CertificateQuery(0.1), DIGESTS, floor).floor is floor
    assert certify(a_result(granularity="token"), CertificateQuery(0.1), DIGESTS, floor).floor is None


def fidelity(lower: float, **changes: Any) -> MeasuredFidelity:
    return MeasuredFidelity(0.9, lower, np.linspace(0.8, 1.0, 6), **changes)


def test_fidelity_and_certificate_add_their_angles() -> None:
    found = certificate(fidelity=fidelity(0.85))
    assert found.fidelity is not None
    assert found.smoothed.best is not None
    angle = np.arccos(0.85) + np.arccos(found.smoothed.best)
    assert found.fidelity.clean_to_attacked == pytest.approx(np.cos(angle), abs=1e-12)
    assert (found.fidelity.served, found.fidelity.lower, found.fidelity.tokens) == (0.9, 0.85, None)
    assert found.fidelity.confidence == pytest.approx(0.998)


def test_tokens_fidelity_goes_with_the_map() -> None:
    found = certificate(fidelity=fidelity(0.85), token_map=True).fidelity
    assert found is not None
    assert np.shape(found.tokens) == (2, 3)
    assert found.tokens == [pytest.approx([0.8, 0.84, 0.88]), pytest.approx([0.92, 0.96, 1.0])]


@pytest.mark.parametrize(
    "changes",
    [
        {"fidelity": fidelity(0.0)},  # nothing is known of g
        {"fidelity": fidelity(0.85), "norm_lower": 0.0, "spread": None},  # nothing is certified
        {"fidelity": fidelity(0.85), "granularity": "token"},  # the certificate is of one token, fidelity of all
    ],
)
def test_nothing_is_said_of_attacked_pictures_where_a_part_is_missing(changes: dict[str, Any]) -> None:
    found = certificate(**changes).fidelity
    assert found is not None
    assert found.clean_to_attacked is None
    assert found.lower == (0.85 if changes["fidelity"].lower else None)


def test_two_wide_angles_leave_little_or_nothing_certain() -> None:
    wide = certificate(CertificateQuery(0.4), fidelity=fidelity(0.01), norm_lower=0.95)
    assert wide.smoothed.best is not None
    assert wide.smoothed.best < 0.9
    assert wide.fidelity is not None
    assert wide.fidelity.clean_to_attacked is not None
    assert -1 < wide.fidelity.clean_to_attacked < 0


def test_without_noise_there_is_no_fidelity() -> None:
    assert certificate(sigma=0.0).fidelity is None
