"""The policy on certificates: no request gets around what the server requires."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from server.robustness.policy import (
    AskedPolicy,
    Decision,
    Evidence,
    FidelityRequirement,
    Requirement,
    ServerPolicy,
    consequence,
    fidelity_requirements_of,
    judge,
    requirements_of,
    stricter,
    strictest,
)

ORDER = ("pass", "flag", "withhold", "reject")
SIMILARITIES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0])
RADII = st.sampled_from([0.0, 0.05, 0.1, 0.2])
SPACES = st.sampled_from(["model", "client"])
ACTIONS = st.sampled_from(["flag", "withhold", "reject"])
GAIN = 0.5  # model radius over client radius

servers = st.builds(
    ServerPolicy, SIMILARITIES, RADII, SPACES, on_failure=ACTIONS, on_undecided=ACTIONS, binds=st.just(True)
)
asks = st.builds(
    AskedPolicy,
    st.none() | SIMILARITIES,
    RADII,
    SPACES,
    on_failure=st.none() | ACTIONS,
    on_undecided=st.none() | ACTIONS,
)
requirements = st.builds(
    Requirement, st.sampled_from(["server", "request"]), SIMILARITIES, RADII, SPACES, ACTIONS, ACTIONS
)


@st.composite
def images(draw: st.DrawFn) -> Callable[[Requirement], Evidence]:
    """Evidence of one image at every radius; bounds and estimates fall with the radius, and a bound may be missing."""
    certified = draw(st.floats(0, 1))
    estimate = draw(st.none() | st.floats(certified, 1))
    slope = draw(st.sampled_from([0.0, 1.0, 3.0]))
    full_budget = draw(st.booleans())

    def at(requirement: Requirement) -> Evidence:
        radius = requirement.radius * (1 if requirement.space == "model" else GAIN)
        bound = certified - slope * radius
        return Evidence(
            bound if bound > 0 else None, None if estimate is None else estimate - slope * radius, full_budget
        )

    return at


def decision(required: list[Requirement], image: Callable[[Requirement], Evidence]) -> Decision:
    return consequence(required, [judge(item, image(item)) for item in required])


@given(servers, asks, images())
def test_a_request_never_loosens_what_binds(
    server: ServerPolicy, asked: AskedPolicy, image: Callable[[Requirement], Evidence]
) -> None:
    silent = AskedPolicy(None, asked.radius, asked.space, None, None)
    before = decision(requirements_of(server, silent), image)
    after = decision(requirements_of(server, asked), image)
    assert ORDER.index(after) >= ORDER.index(before)


@given(servers, asks, images())
def test_a_request_is_held_to_what_it_asks_for_itself(
    server: ServerPolicy, asked: AskedPolicy, image: Callable[[Requirement], Evidence]
) -> None:
    assume(asked.similarity is not None)
    alone = requirements_of(dataclasses.replace(server, similarity=None), asked)
    assert [item.source for item in alone] == ["request"]
    both = decision(requirements_of(server, asked), image)
    assert ORDER.index(both) >= ORDER.index(decision(alone, image))


@given(requirements, requirements, images())
def test_a_requirement_that_implies_another_may_stand_for_it(
    one: Requirement, other: Requirement, image: Callable[[Requirement], Evidence]
) -> None:
    assume(one.implies(other))
    assert decision([one], image) == decision([one, other], image)


@given(requirements)
def test_every_requirement_implies_itself(one: Requirement) -> None:
    assert one.implies(one)


@given(servers, asks)
def test_requirements_do_not_repeat_each_other(server: ServerPolicy, asked: AskedPolicy) -> None:
    required = requirements_of(server, asked)
    assert 1 <= len(required) <= 2
    for item in required:
        assert not any(other.implies(item) for other in required if other is not item)


def policy(**changes: object) -> ServerPolicy:
    values = {"similarity": 0.8, "radius": 0.1, "space": "model", "on_failure": "flag", "on_undecided": "flag"}
    return ServerPolicy(**{"binds": True, **values, **changes})  # type: ignore[arg-type]


def ask(**changes: object) -> AskedPolicy:
    values = {"similarity": None, "radius": 0.1, "space": "model", "on_failure": None, "on_undecided": None}
    return AskedPolicy(**{**values, **changes})  # type: ignore[arg-type]


def test_without_any_minimum_nothing_is_required() -> None:
    assert requirements_of(policy(similarity=None), ask()) == []
    assert consequence([], []) == "pass"


def test_defaults_give_way_to_what_the_request_asks() -> None:
    loose = policy(binds=False, on_failure="reject", on_undecided="reject")
    (given,) = requirements_of(loose, ask(similarity=0.1, radius=0.01, on_failure="flag"))
    assert given == Requirement("request", 0.1, 0.01, "model", "flag", "flag")
    (default,) = requirements_of(loose, ask(radius=0.01))
    assert default == Requirement("server", 0.8, 0.01, "model", "reject", "reject")


def test_a_smaller_radius_does_not_move_the_one_that_binds() -> None:
    (bound,) = requirements_of(policy(on_failure="reject"), ask(radius=1e-6))
    assert bound.radius == 0.1


def test_a_request_may_make_the_consequences_stricter_and_not_milder() -> None:
    (stricter_one,) = requirements_of(policy(), ask(on_failure="reject"))
    assert (stricter_one.on_failure, stricter_one.on_undecided) == ("reject", "reject")
    (bound,) = requirements_of(policy(on_failure="reject", on_undecided="withhold"), ask(on_failure="flag"))
    assert (bound.on_failure, bound.on_undecided) == ("reject", "withhold")


def test_what_asks_for_something_else_is_judged_beside_what_binds() -> None:
    required = requirements_of(policy(on_failure="reject", on_undecided="reject"), ask(similarity=0.95, radius=0.01))
    assert [item.source for item in required] == ["server", "request"]
    (stronger,) = requirements_of(policy(), ask(similarity=0.95, radius=0.2))
    assert stronger.source == "request"


@pytest.mark.parametrize(
    ("evidence", "verdict"),
    [
        (Evidence(0.8, 0.9), "met"),
        (Evidence(0.81, None), "met"),
        (Evidence(0.79, 0.8), "undecided"),
        (Evidence(None, 0.95), "undecided"),
        (Evidence(0.79, 0.79), "failed"),
        (Evidence(None, None), "failed"),
        (Evidence(0.79, 0.95, full_budget=False), "failed"),
    ],
)
def test_verdicts(evidence: Evidence, verdict: str) -> None:
    assert judge(Requirement("server", 0.8, 0.1, "model", "reject", "flag"), evidence) == verdict


def test_without_a_certificate_not_even_a_similarity_of_zero_is_met() -> None:
    requirement = Requirement("request", 0.0, 0.1, "model", "reject", "flag")
    assert judge(requirement, Evidence(None, None)) == "failed"
    assert judge(requirement, Evidence(1e-9, 0.1)) == "met"


def test_consequences() -> None:
    required = [
        Requirement("server", 0.8, 0.1, "model", "withhold", "flag"),
        Requirement("request", 0.9, 0.1, "model", "reject", "flag"),
    ]
    assert consequence(required, ["met", "met"]) == "pass"
    assert consequence(required, ["undecided", "undecided"]) == "flag"
    assert consequence(required, ["failed", "undecided"]) == "withhold"
    assert consequence(required, ["failed", "failed"]) == "reject"
    assert strictest([]) == "pass"
    assert strictest(["flag", "pass", "withhold"]) == "withhold"
    assert stricter("flag", "withhold") == stricter("withhold", "flag") == "withhold"


# --- fidelity ---------------------------------------------------------------------------------------------------------

FIDELITIES = st.sampled_from([0.25, 0.5, 0.9, 1.0])
FIDELITY_ACTIONS = st.sampled_from(["flag", "withhold"])
fidelity_servers = st.builds(
    dataclasses.replace, servers, fidelity=FIDELITIES, on_low_fidelity=FIDELITY_ACTIONS, binds=st.booleans()
)
fidelity_asks = st.builds(
    dataclasses.replace,
    asks,
    fidelity=st.none() | FIDELITIES,
    on_low_fidelity=st.none() | FIDELITY_ACTIONS,
)
kept = st.builds(Evidence, st.none() | st.floats(0, 1), st.floats(0, 1), st.booleans())


def of_fidelity(required: list[FidelityRequirement], evidence: Evidence) -> Decision:
    return consequence(required, [judge(item, evidence) for item in required])


@given(fidelity_servers, fidelity_asks, kept)
def test_a_request_never_loosens_what_fidelity_binds(
    server: ServerPolicy, asked: AskedPolicy, evidence: Evidence
) -> None:
    assume(server.binds)
    silent = dataclasses.replace(asked, fidelity=None, on_low_fidelity=None)
    before = of_fidelity(fidelity_requirements_of(server, silent), evidence)
    assert ORDER.index(of_fidelity(fidelity_requirements_of(server, asked), evidence)) >= ORDER.index(before)


@given(fidelity_servers, fidelity_asks, kept)
def test_a_request_is_held_to_the_fidelity_that_it_asks_for(
    server: ServerPolicy, asked: AskedPolicy, evidence: Evidence
) -> None:
    assume(asked.fidelity is not None)
    (own,) = fidelity_requirements_of(dataclasses.replace(server, fidelity=None), asked)
    required = fidelity_requirements_of(server, asked)
    assert ORDER.index(of_fidelity(required, evidence)) >= ORDER.index(of_fidelity([own], evidence))
    assert 1 <= len(required) <= 2
    assert not any(one.implies(other) for one in required for other in required if one is not other)


def test_a_default_fidelity_gives_way() -> None:
    loose = dataclasses.replace(policy(similarity=None), binds=False, fidelity=0.9, on_low_fidelity="withhold")
    assert not loose.is_binding
    (given_,) = fidelity_requirements_of(loose, ask(fidelity=0.1, on_low_fidelity="flag"))
    assert (given_.source, given_.fidelity, given_.on_failure, given_.on_undecided) == ("request", 0.1, "flag", "flag")
    (default,) = fidelity_requirements_of(loose, ask())
    assert (default.source, default.fidelity, default.on_failure) == ("server", 0.9, "withhold")
    assert fidelity_requirements_of(policy(), ask()) == []


def test_a_fidelity_alone_binds() -> None:
    assert dataclasses.replace(policy(similarity=None), fidelity=0.9).is_binding
