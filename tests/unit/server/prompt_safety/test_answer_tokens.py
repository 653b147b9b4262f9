from typing import Any

import pytest

from server.errors import ApiError
from server.prompt_safety.answer_tokens import cap_answer_tokens


def capped(body: dict[str, Any], ceiling: int | None = 100, default: int | None = None) -> dict[str, Any]:
    cap_answer_tokens(body, ceiling, default)
    return body


@pytest.mark.parametrize(
    ("body", "default", "added"),
    [
        ({}, None, 100),
        ({}, 256, 100),
        ({}, 20, None),
        ({"n": 3}, None, 33),
        ({"max_tokens": None}, None, 100),
        ({"max_tokens": 100}, None, None),
        ({"max_completion_tokens": 50, "n": 2}, None, None),
    ],
)
def test_requests_that_do_not_say_get_what_the_ceiling_allows(
    body: dict[str, Any], default: int | None, added: int | None
) -> None:
    before = dict(body)
    assert capped(body, default=default) == (before if added is None else before | {"max_completion_tokens": added})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"max_tokens": 101}, "max_tokens"),
        ({"max_completion_tokens": 101}, "max_completion_tokens"),
        ({"max_completion_tokens": 1, "max_tokens": 101}, "max_tokens"),
        ({"max_tokens": 51, "n": 2}, "max_tokens"),
        ({"n": 101}, "n"),
        ({"max_tokens": "1000"}, "max_tokens"),  # vLLM reads it as a number
        ({"max_tokens": 1000.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"n": "2"}, "n"),
        ({"n": 0}, "n"),
    ],
)
def test_requests_above_the_ceiling(body: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        capped(body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_without_a_ceiling_everything_passes_untouched() -> None:
    body = {"max_tokens": "1000", "n": 5}
    assert capped(dict(body), ceiling=None) == body
