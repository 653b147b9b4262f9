"""What is said of a model as it is loaded."""

from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from server.models.loading import warn_about_moving_radius
from server.settings.gateway import Settings

MEASURED: Any = SimpleNamespace(sigma=0.1, statistics=SimpleNamespace(levels=(object(),)))
NOT_MEASURED: Any = SimpleNamespace(sigma=0.1, statistics=SimpleNamespace(levels=()))


@pytest.mark.parametrize(
    ("smoother", "settings", "warns"),
    [
        (MEASURED, {"min_similarity": 0.8}, True),
        (MEASURED, {"min_similarity": 0.8, "min_similarity_radius": 0.1}, False),
        (MEASURED, {"min_similarity": 0.8, "radius": 0.1}, False),
        (MEASURED, {"min_similarity": 0.8, "sigma": 0.2}, False),
        (MEASURED, {}, False),
        (NOT_MEASURED, {"min_similarity": 0.8}, False),
    ],
)
def test_a_minimum_whose_radius_follows_from_a_file_is_warned_of(
    smoother: Any, settings: dict[str, Any], warns: bool
) -> None:
    with structlog.testing.capture_logs() as logs:
        warn_about_moving_radius(Settings(model="x", **settings), smoother)
    assert [line["radius"] for line in logs] == ([0.05] if warns else [])
