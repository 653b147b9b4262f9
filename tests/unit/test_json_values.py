import json
from typing import Any

import pytest

from server.api.json_values import MAX_DEPTH, check_json
from server.errors import ApiError


@pytest.mark.parametrize("data", [{}, {"a": [1, 2.5, None, True, "ü👩‍🚀", {"b": []}]}, {"a": 10**300}])
def test_what_can_be_sent_on(data: Any) -> None:
    check_json(data)


@pytest.mark.parametrize(
    ("text", "param", "words"),
    [
        ('{"a": {"b": [0, 1e999]}}', "a.b.1", "range"),
        ('{"a": -1e999}', "a", "range"),
        ('{"a": "\\ud800"}', None, "surrogate"),
        ('{"\\udfff": 1}', None, "surrogate"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), None, "nested"),
        ('{"a":' * 500 + "1" + "}" * 500, None, "nested"),
    ],
)
def test_what_cannot(text: str, param: str | None, words: str) -> None:
    with pytest.raises(ApiError, match=words) as caught:
        check_json(json.loads(text))
    assert (caught.value.status, caught.value.param) == (400, param)
