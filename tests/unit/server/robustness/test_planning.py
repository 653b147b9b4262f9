from types import SimpleNamespace
from typing import Any

import pytest

from fs_runtime.options import CertificateQuery
from server.errors import ApiError
from server.robustness.options import RobustnessOptions
from server.robustness.planning import SmoothingPlan, plan_of
from server.settings.request import RequestSettings

SMOOTHER: Any = SimpleNamespace(sigma_for=lambda sigma: 0.2 if sigma is None else sigma, statistics=object())


def plan(settings: dict[str, Any] | None = None, smoother: Any = SMOOTHER, **options: Any) -> SmoothingPlan:
    return plan_of(RobustnessOptions(**options), RequestSettings(**settings or {}), smoother, allow_seed=False)


def refused(settings: dict[str, Any] | None = None, **options: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        plan(settings, **options)
    return caught.value


BINDING = {"min_similarity": 0.8, "on_failure": "reject"}


def test_defaults() -> None:
    made = plan()
    assert (made.terms.sigma, made.samples, made.terms.confidence, made.query.radius) == (0.2, 256, 0.999, 0.1)
    assert made.requirements == []
    assert made.until is None


def test_without_noise_one_sample_is_drawn() -> None:
    assert plan(sigma=0, samples=100).samples == 1


def test_sigma_is_used_to_four_decimals() -> None:
    for sigma in (0.125, 0.1250001, 0.12496):
        made = plan(sigma=sigma)
        assert (made.terms.sigma, made.query.radius) == (0.125, 0.0625)
    assert plan(sigma=0.1251).terms.sigma == 0.1251
    assert plan({"sigma": 0.33333333}).terms.sigma == 0.3333
    assert plan(BINDING | {"sigma": 0.33333333}).requirements[0].radius == 0.3333 / 2
    assert plan({"max_sigma": 0.33336, "sigma": 0.33336}).terms.sigma == 0.3334  # the ceiling is for what is asked


def test_the_radius_that_binds_does_not_follow_the_requests_sigma() -> None:
    made = plan(BINDING, sigma=0.01)
    assert made.query.radius == 0.005
    (requirement,) = made.requirements
    assert requirement.radius == 0.1
    assert made.query.min_similarity is None  # the query's radius is another one
    assert plan(BINDING).query.min_similarity == 0.8
    assert plan(BINDING | {"min_similarity_radius": 0.3}).requirements[0].radius == 0.3
    assert plan(BINDING | {"radius": 0.15}).requirements[0].radius == 0.15


@pytest.mark.parametrize(
    "asked",
    [
        {"min_similarity": 0.7, "radius": 0.05},  # the operator's implies it
        {"min_similarity": 0.7, "radius": 0.1},
        {"min_similarity": 0.0, "radius": 0.1},
        {"min_similarity": 0.9, "radius": 0.05},  # neither implies the other
        {"min_similarity": 0.9, "radius": 0.2, "on_failure": "reject"},  # it implies the operator's
        {"min_similarity": 0.7, "radius": 0.05, "space": "client"},
    ],
)
def test_the_certificate_answers_what_the_request_asks(asked: dict[str, Any]) -> None:
    for adaptive in (False, True):
        query = plan(BINDING, adaptive=adaptive, **asked).query
        assert query == CertificateQuery(asked["radius"], asked.get("space", "model"), asked["min_similarity"])


def test_what_the_operator_requires_at_another_radius_ends_the_sampling_for_what_it_implies() -> None:
    made = plan(BINDING, adaptive=True, min_similarity=0.7, radius=0.05)
    assert [item.source for item in made.requirements] == ["server"]
    assert made.until == CertificateQuery(0.1, "model", 0.8)


def test_a_minimum_that_does_not_bind_holds_at_the_asked_radius() -> None:
    (requirement,) = plan(BINDING | {"policy_binds": False}, radius=0.03).requirements
    assert (requirement.radius, requirement.source) == (0.03, "server")


def test_less_confidence_than_what_binds_is_raised_to_it() -> None:
    assert plan(BINDING, confidence=0.5).terms.confidence == 0.999
    assert plan(BINDING, confidence=0.9999).terms.confidence == 0.9999
    assert plan(confidence=0.5).terms.confidence == 0.5


@pytest.mark.parametrize(("name", "value"), [("stage", "projector"), ("centred", True), ("granularity", "token")])
def test_features_that_the_minimum_does_not_speak_of_are_refused(name: str, value: Any) -> None:
    error = refused(BINDING, **{name: value})
    assert (error.status, error.code, error.param) == (400, "policy_conflict", f"robustness.{name}")
    plan(BINDING | {name: value}, **{name: value})
    plan(BINDING | {"policy_binds": False}, **{name: value})
    plan(**{name: value})


def test_few_samples_do_not_buy_a_milder_verdict() -> None:
    assert not plan(BINDING, samples=255).full_budget
    assert plan(BINDING, samples=256).full_budget
    assert plan(samples=2).full_budget


def test_adaptive_sampling_ends_at_the_only_requirement() -> None:
    assert plan(BINDING, adaptive=True).until == CertificateQuery(0.1, "model", 0.8)
    assert plan(BINDING, adaptive=True, min_similarity=0.9, radius=0.01).until is None
    assert plan(BINDING, adaptive=True, min_similarity=0.9, on_failure="reject").until == CertificateQuery(
        0.1, "model", 0.9
    )
    assert refused(adaptive=True).param == "robustness.min_similarity"


@pytest.mark.parametrize(
    ("settings", "options", "param"),
    [
        ({"max_sigma": 0.5}, {"sigma": 0.6}, "robustness.sigma"),
        ({"max_samples": 300}, {"samples": 301}, "robustness.samples"),
        ({}, {"on_failure": "withhold"}, "robustness.min_similarity"),
        ({}, {"on_undecided": "reject"}, "robustness.min_similarity"),
    ],
)
def test_what_is_not_allowed(settings: dict[str, Any], options: dict[str, Any], param: str) -> None:
    assert refused(settings, **options).param == param
    assert refused(settings, **options).status == 400


def test_a_minimum_that_binds_is_not_tried_again_with_other_draws() -> None:
    assert plan({"min_similarity": 0.9}, cache=False).cache
    assert not plan({"min_similarity": 0.9, "policy_binds": False}, cache=False).cache
    assert not plan(cache=False).cache


def test_a_fidelity_is_required_beside_a_similarity_and_ends_nothing_early() -> None:
    made = plan(BINDING | {"min_fidelity": 0.9, "on_low_fidelity": "withhold"}, adaptive=True)
    assert [item.kind for item in made.all_requirements] == ["similarity", "fidelity"]
    assert made.all_requirements[1].on_undecided == "withhold"
    assert made.until is None
    assert plan(BINDING, adaptive=True).until is not None


def test_a_fidelity_that_binds_pins_the_features_and_the_draws() -> None:
    made = plan({"min_fidelity": 0.9}, cache=False, confidence=0.5)
    assert (made.cache, made.terms.confidence) == (True, 0.999)
    assert refused({"min_fidelity": 0.9}, stage="projector").code == "policy_conflict"


def test_a_consequence_of_low_fidelity_needs_a_fidelity() -> None:
    assert refused(on_low_fidelity="withhold").param == "robustness.min_fidelity"
    assert plan(on_low_fidelity="flag").all_requirements == []


def test_the_models_default_sigma_is_lowered_to_a_tenants_ceiling() -> None:
    default = plan().terms.sigma
    made = plan({"max_sigma": default / 2})
    assert made.terms.sigma == default / 2
    assert made.query.radius == default / 4
    assert refused({"max_sigma": default / 2}, sigma=default).param == "robustness.sigma"
