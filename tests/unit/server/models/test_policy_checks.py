"""What a model's default noise level does to ceilings and minimums is refused or said as it is loaded."""

from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from fs_runtime.encoders import CheckpointError
from fs_runtime.psm import PsmFacts
from server.access.tenants import parse_access
from server.models.policy_checks import check_default_sigma, warn_about_policy, warn_about_tenants
from server.settings.gateway import Settings


def smoother(sigma: float, psm_sigma: float = 0.05, psm: PsmFacts | None = None, measured: bool = False) -> Any:
    statistics = SimpleNamespace(levels=(object(),)) if measured else None
    return SimpleNamespace(sigma=sigma, psm_sigma=psm_sigma, psm=psm, statistics=statistics)


SHIPPED = PsmFacts("photo-small", "any", 0.05, 1.0)
MEASURED = smoother(0.1, measured=True)
CHANGED = smoother(0.1, 0.1, SHIPPED)
UNCHANGED = [
    smoother(0.25, 0.25, SHIPPED),  # as before
    smoother(0.05),  # no purifier
    smoother(0.1, 0.1, PsmFacts("mine", "this", 0.1, 0.1)),  # trained for it
    smoother(0.05, 0.05, PsmFacts("deepinv:DRUNet", "any", 0, 0.2)),  # there was no such purifier before
]


@pytest.mark.parametrize("moving", [MEASURED, CHANGED])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_similarity": 0.8}, ["min_similarity"]),
        ({"min_similarity": 0.8, "min_similarity_radius": 0.1}, []),
        ({"min_similarity": 0.8, "radius": 0.1}, []),
        ({"min_similarity": 0.8, "sigma": 0.2}, []),
        ({"min_fidelity": 0.8}, ["min_fidelity"]),
        ({"min_fidelity": 0.8, "radius": 0.1}, ["min_fidelity"]),
        ({"min_fidelity": 0.8, "min_similarity": 0.8, "sigma": 0.2}, []),
        ({"min_fidelity": 0.8, "min_similarity": 0.8}, ["min_similarity", "min_fidelity"]),
        ({}, []),
    ],
)
def test_minimums_that_move_with_the_default_sigma_are_warned_of(
    moving: Any, settings: dict[str, Any], words: list[str]
) -> None:
    with capture_logs() as logs:
        warn_about_policy(Settings(model="x", **settings), moving)
    assert [line["event"].split()[0] for line in logs] == words
    assert all(line["log_level"] == "warning" and line["sigma"] == 0.1 for line in logs)


def test_the_warning_says_what_moved() -> None:
    with capture_logs() as logs:
        warn_about_policy(Settings(model="x", min_similarity=0.8), CHANGED)
    (line,) = logs
    assert (line["radius"], line["former_sigma"], line["former_radius"]) == (0.05, 0.25, 0.125)


@pytest.mark.parametrize("unchanged", UNCHANGED)
def test_nothing_is_said_where_the_default_is_what_it_was(unchanged: Any) -> None:
    with capture_logs() as logs:
        warn_about_policy(Settings(model="x", min_similarity=0.8, min_fidelity=0.8), unchanged)
    assert logs == []


def test_a_consequence_without_a_minimum_is_warned_of() -> None:
    with capture_logs() as logs:
        warn_about_policy(Settings(on_low_fidelity="withhold"), UNCHANGED[0])
        warn_about_policy(Settings(on_low_fidelity="withhold", min_fidelity=0.8), UNCHANGED[0])
    (line,) = logs
    assert "set min_fidelity" in line["event"]


def test_tenants_are_warned_of_by_name_where_their_own_settings_say_so() -> None:
    settings = Settings(model="x")
    text = (
        b"tenants: {strict: {min_similarity: 0.8}, fixed: {min_similarity: 0.8, min_similarity_radius: 0.1}, "
        b"idle: {on_low_fidelity: withhold}, other: {samples: 12}, elsewhere: {min_similarity: 0.8, models: [y]}}"
    )
    with capture_logs() as logs:
        warn_about_tenants(parse_access(text, settings).tenants.values(), settings, MEASURED)
    assert [(line["tenant"], line["event"].split()[0]) for line in logs] == [
        ("strict", "min_similarity"),
        ("idle", "on_low_fidelity"),
    ]


def test_a_default_sigma_above_the_ceiling_is_refused_with_the_remedy() -> None:
    with pytest.raises(CheckpointError, match=r"default sigma of x is 0\.1, above max_sigma 0\.05.* raise max_sigma"):
        check_default_sigma(Settings(model="x", max_sigma=0.05), MEASURED)
    check_default_sigma(Settings(model="x", max_sigma=0.1), MEASURED)
    check_default_sigma(Settings(model="x", max_sigma=0.05, sigma=0.02), MEASURED)
