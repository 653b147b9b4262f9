from typing import Any

import pytest

from fs_runtime.receipts.comparison import differences

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
