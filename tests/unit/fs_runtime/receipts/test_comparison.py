from typing import Any

import pytest

from fs_runtime.receipts.comparison import differences, unknown_fields

RANGE = ({"a": {"b": [0.5, 0.7]}}, {"a": {"b": [0.5, 0.71]}}, {"a": {"b": [0.5, 0.72]}})


@pytest.mark.parametrize("value", [0.695, 0.7, 0.715, 0.72, 0.725])
def test_within_the_range_and_its_slack(value: float) -> None:
    assert differences({"a": {"b": [0.5, value]}}, RANGE, 0.006) == []


@pytest.mark.parametrize("value", [0.69, 0.73, None, True, "0.71", [0.71]])
def test_outside_of_it_the_field_is_named(value: Any) -> None:
    (found,) = differences({"a": {"b": [0.5, value]}}, RANGE, 0.006)
    assert found.field == "certificate.a.b.1"
    assert "0.71" in str(found)


def test_what_the_draws_do_not_move_is_compared_exactly() -> None:
    assert differences({"a": {"b": [0.5 * (1 + 1e-10), 0.71]}}, RANGE, 0.006) == []
    (found,) = differences({"a": {"b": [0.501, 0.71]}}, RANGE, 0.006)
    assert found.field == "certificate.a.b.0"


@pytest.mark.parametrize(
    "recorded",
    [{}, {"a": {}}, {"a": {"b": [0.5]}}, {"a": {"b": [0.5, 0.71, 1]}}, {"a": {"b": [0.5, 0.71]}, "c": 1}, [], None, 3],
)
def test_another_structure(recorded: Any) -> None:
    assert len(differences(recorded, RANGE, 0.006)) == 1


@pytest.mark.parametrize(
    ("replays", "accepted", "refused"),
    [
        ((None, 0.1, 0.2), [None, 0.0, 0.05, 0.2], [0.3, -0.1, False]),  # nothing is certified at the lower end
        ((None, None, None), [None], [0.0, 0.001, False]),
        ((0.1, 0.1, 0.1), [0.1], [None, 0.1001]),
        ((False, True, True), [False, True], [None, 0, 1]),
        ((True, True, True), [True], [False, 1]),
        (("image",) * 3, ["image"], ["token", None]),
        ((3, 3, 3), [3, 3.0], [4, True, "3"]),
    ],
)
def test_nulls_booleans_and_words(replays: tuple[Any, ...], accepted: list[Any], refused: list[Any]) -> None:
    for value in accepted:
        assert differences(value, replays, 0.01) == [], value
    for value in refused:
        assert len(differences(value, replays, 0.01)) == 1, value


def test_fields_that_came_later_may_be_missing_and_no_others() -> None:
    def replay(shift: float) -> dict[str, Any]:
        return {"a": 0.5 + shift, "new": 1, "curve": {"bounds": [{"r": 1, "best": 0.9, "new": 0.8 + shift}]}}

    replays = [replay(shift) for shift in (-0.01, 0.0, 0.01)]
    later = frozenset({"certificate.new", "certificate.curve.bounds.*.new"})
    old = {"a": 0.5, "curve": {"bounds": [{"r": 1, "best": 0.9}]}}
    assert differences(old, replays, 0.0, later=later) == []
    assert differences(old | {"new": 1}, replays, 0.0, later=later) == []
    assert [found.field for found in differences(old | {"new": 2}, replays, 0.0, later=later)] == ["certificate.new"]
    assert [found.field for found in differences(old, replays, 0.0)] == ["certificate"]
    lacking = {"a": 0.5, "curve": {"bounds": [{"r": 1}]}}
    assert [found.field for found in differences(lacking, replays, 0.0, later=later)] == ["certificate.curve.bounds.0"]


def test_fields_that_are_not_known_here_are_named() -> None:
    replayed = {"a": {"b": [{"c": 1}]}, "d": None}
    recorded = {"a": {"b": [{"c": 1, "x": 2}, {"y": 3}]}, "d": {"z": 1}, "w": 0}
    assert unknown_fields(recorded, replayed) == ["certificate.w", "certificate.a.b.0.x"]
    assert unknown_fields(replayed, replayed) == []
