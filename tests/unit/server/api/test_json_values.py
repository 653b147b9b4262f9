import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from server.api.json_values import MAX_DEPTH, MAX_VALUES, check_json, parse_json
from server.api.schemas import ChatCompletionRequest
from server.errors import ApiError, from_validation


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


def peak_of(call: Callable[[], object]) -> int:
    """Bytes that a call takes on top of what is there."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_paths_are_not_kept_for_every_value() -> None:
    data = {"k" * 100_000: [0] * 1000}
    assert peak_of(lambda: check_json(data)) < 1_000_000  # with a path for each element it is 100 MB


def test_very_long_names_are_cut_short_in_errors() -> None:
    with pytest.raises(ApiError) as caught:
        check_json({"k" * 100_000: [0, float("inf")]})
    assert caught.value.param == "k" * 80 + "….1"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([0] * (MAX_VALUES - 1)),
        json.dumps([{}] * (MAX_VALUES // 2 - 1)),  # an empty object counts twice
        json.dumps({"a": ',[{"' * MAX_VALUES, ',"[' * MAX_VALUES: "\\"}),
        "\ufeff" + json.dumps("," * MAX_VALUES),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_as_many_values_as_allowed_and_marks_in_texts(text: str, encoding: str) -> None:
    assert parse_json(text.encode(encoding)) == json.loads(text.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([0] * MAX_VALUES),
        json.dumps({str(index): "," for index in range(MAX_VALUES)}),
        "[" + "{}," * 1_000_000 + "{}]",
        "[" * MAX_VALUES,
        '"a"' * 500_000 + "," * MAX_VALUES,
    ],
)
def test_more_values_are_refused_before_they_are_made(text: str) -> None:
    raw = text.encode()

    def refuse() -> None:
        with pytest.raises(ApiError, match="100000 values") as caught:
            parse_json(raw)
        assert (caught.value.status, caught.value.code) == (400, "too_many_values")

    assert peak_of(refuse) < len(raw) + 1_000_000


@pytest.mark.parametrize(
    "raw", [b"", b"{", b'"', b'"' + b"," * MAX_VALUES, b'"\\' + b"[" * MAX_VALUES, b"\xff", b"[NaN]"]
)
def test_what_is_not_json(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_json(raw)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("elements", ["messages", "parts"])
def test_of_many_bad_elements_the_first_is_reported(elements: str) -> None:
    bad: list[Any] = [0] * 1000
    messages = bad if elements == "messages" else [{"role": "user", "content": bad}]
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate({"model": "m", "messages": messages})
    assert caught.value.error_count() <= 2  # what a content is not: a text, and a list of parts
    assert from_validation(caught.value).param == ("messages.0" if elements == "messages" else "messages.0.content.0")


def test_of_many_problems_the_first_few_are_counted() -> None:
    options = {f"{'x' * 1000}{index}": 1 for index in range(1000)}
    with pytest.raises(ValidationError) as caught:
        ChatCompletionRequest.model_validate({"model": 1, "messages": [{"role": "user"}], "robustness": options})
    assert caught.value.error_count() > 1000
    error = from_validation(caught.value)
    assert error.param == f"robustness.{'x' * 80}…"
    assert len(error.message) < 300
