"""How an answer is voted on, where request and operator leave something open."""

from typing import Any

import pytest

from server.robustness.answer_options import AnswerOptions
from server.robustness.answer_plan import AnswerPlan, answer_plan_of
from server.settings.request import RequestSettings


def plan(asked: dict[str, Any] | None = None, **settings: Any) -> AnswerPlan:
    options = AnswerOptions.model_validate({"certify": True, **(asked or {})})
    made = answer_plan_of(options, RequestSettings(**settings), 0.25, 0.25)
    assert made is not None
    return made


def test_the_ceiling_of_samples_lowers_the_default_number_of_copies() -> None:
    assert plan().samples == 128
    few = {"samples": 16, "max_samples": 20}
    assert RequestSettings(**few).contradiction() is None
    assert plan(**few).samples == 20


@pytest.mark.parametrize(
    ("samples", "settings", "full"),
    [
        (None, {"min_answer_radius": 0.1}, True),
        (128, {"min_answer_radius": 0.1}, True),
        (127, {"min_answer_radius": 0.1}, False),
        (20, {"min_answer_radius": 0.1, "samples": 16, "max_samples": 20}, True),
        (16, {"min_answer_radius": 0.1, "policy_binds": False}, True),
        (16, {}, True),
    ],
)
def test_fewer_copies_than_usual_are_no_full_budget_where_the_operator_binds(
    samples: int | None, settings: dict[str, Any], full: bool
) -> None:
    assert plan({} if samples is None else {"samples": samples}, **settings).full_budget is full


@pytest.mark.parametrize("asked", [{"samples": 16}, {"radius": 0.1}, {"choices": ["a", "b"]}, {"adaptive": False}])
def test_who_chooses_what_the_radius_depends_on_has_own_parameters(asked: dict[str, Any]) -> None:
    assert plan(asked).own_parameters


@pytest.mark.parametrize("asked", [{}, {"choices": None}, {"on_undecided": "flag"}])
def test_who_leaves_that_to_the_operator_has_none(asked: dict[str, Any]) -> None:
    assert not plan(asked, min_answer_radius=0.125).own_parameters
