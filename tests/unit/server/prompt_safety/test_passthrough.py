"""Which fields of a request go on to the language model server."""

from typing import Any

import pytest

from server.errors import ApiError
from server.prompt_safety.passthrough import REFUSED_FIELDS, check_template_variables, refuse_fields


@pytest.mark.parametrize("name", sorted(REFUSED_FIELDS))
def test_refused_fields(name: str) -> None:
    with pytest.raises(ApiError, match=name) as caught:
        refuse_fields({name: None}, "messages.0.")
    assert (caught.value.status, caught.value.code) == (400, "field_refused")
    assert caught.value.param == f"messages.0.{name}"


@pytest.mark.parametrize("variables", [None, {}, {"enable_thinking": False, "a": 1, "b": None, "c": "text"}])
def test_template_variables_that_pass(variables: Any) -> None:
    check_template_variables(variables)


@pytest.mark.parametrize(
    "variables", [[], "x", {"messages": 1}, {"chat_template": "{{x}}"}, {"tokenize": True}, {"a": []}, {"a": {"b": 1}}]
)
def test_template_variables_that_do_not(variables: Any) -> None:
    with pytest.raises(ApiError) as caught:
        check_template_variables(variables)
    assert caught.value.param.startswith("chat_template_kwargs")
