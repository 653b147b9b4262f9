"""What is read from answers: values that are the same are equal, and what cannot be read has none."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fs_runtime.votes import Choices, Fields, Pattern, ReadingError, WholeText, normalised


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is red.", "  it IS\n red"),
        ("No!", "no"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "caf\u00e9"),
        ("Yes ...", "yes"),
        ("赤です。", "赤です"),
    ],
)
def test_texts_that_differ_in_form_alone_are_one(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(("one", "other"), [("1.5", "15"), ("a b", "ab"), ("is it?", "it is"), ("-5", "5")])
def test_texts_that_say_something_else_are_not(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


def test_whole_text() -> None:
    read = WholeText()
    assert read("It is red.", finished=True) == ("it is red",)
    assert read("It is red", finished=False) == (None,)  # it was cut off
    assert read(" . ", finished=True) == (None,)


def test_choices() -> None:
    read = Choices(["Yes", "No, it is not."])
    assert read("yes.", finished=True) == ("Yes",)
    assert read("no, it is NOT", finished=True) == ("No, it is not.",)
    assert read("perhaps", finished=True) == read("yes", finished=False) == (None,)


@pytest.mark.parametrize(
    ("choices", "message"),
    [(["a"], "2 to"), ([], "2 to"), (["a", "A."], "the same"), (["a", " "], "no text"), (["a"] * 101, "2 to")],
)
def test_choices_that_are_none(choices: list[str], message: str) -> None:
    with pytest.raises(ReadingError, match=message):
        Choices(choices)


@pytest.mark.parametrize(
    ("pattern", "text", "value"),
    [
        (r"(\d+)", "there are 12 of 30", "12"),
        (r"\d+", "there are 12", "12"),
        (r"(?i)^(yes|no)\b", "YES, it is", "yes"),
        (r"total: (\S+)", "nothing", None),
        (r"a(b)?c", "ac", None),
        (r"a(x*)", "a", None),
        (r"(?i)colou?r is (\w+)", "The colour is Red.", "red"),
    ],
)
def test_patterns(pattern: str, text: str, value: str | None) -> None:
    assert Pattern(pattern)(text, finished=True) == (value,)
    assert Pattern(pattern)(text, finished=False) == (value,)


@pytest.mark.parametrize("pattern", ["()", "^", "x*", "(a{0})", "(?:)", "z*$|^"])
def test_patterns_that_give_one_value_whatever_the_answer_are_refused(pattern: str) -> None:
    with pytest.raises(ReadingError, match="whatever the answer"):
        Pattern(pattern)


@pytest.mark.parametrize(("pattern", "message"), [("(", "RE2: missing"), (r"(a)\1", "RE2"), ("a" * 1001, "1001 char")])
def test_patterns_that_are_none(pattern: str, message: str) -> None:
    with pytest.raises(ReadingError, match=message):
        Pattern(pattern)


def test_patterns_take_linear_time() -> None:
    began = time.perf_counter()
    assert Pattern(r"(a+)+$")("a" * 100_000 + "b", finished=True) == (None,)
    assert time.perf_counter() - began < 5  # a backtracking engine would not come to an end


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"total": 12.0, "items": [{"a/b": "x", "~": null}]}', ("12", '"x"', "null")),
        ('{"total": 12, "items": []}', ("12", None, None)),
        ('{"total": "12"}', ('"12"', None, None)),
        ("not JSON", (None, None, None)),
        ('{"total": NaN}', (None, None, None)),
        ('{"total": 1e999}', (None, None, None)),
        ("[" * 100_000, (None, None, None)),
        ('{"total": {"b": 1, "a": 2}}', ('{"a":2,"b":1}', None, None)),
    ],
)
def test_fields(text: str, values: tuple[str | None, ...]) -> None:
    read = Fields(["/total", "/items/0/a~1b", "/items/0/~0"])
    assert read(text, finished=True) == values
    assert read(text, finished=False) == (None, None, None)


@pytest.mark.parametrize("index", ["-1", "01", "1", "-", "a", "9999999999"])
def test_fields_that_are_not_there(index: str) -> None:
    assert Fields([f"/{index}"])('["x"]', finished=True) == (None,)


@pytest.mark.parametrize(
    ("pointers", "message"),
    [
        ([], "1 to"),
        (["a"], "no JSON pointer"),
        (["/a", "/a"], "twice"),
        (["/a~2"], "no JSON pointer"),
        (["/"] * 17, "1 to"),
    ],
)
def test_pointers_that_are_none(pointers: list[str], message: str) -> None:
    with pytest.raises(ReadingError, match=message):
        Fields(pointers)


def test_descriptions_tell_functions_apart() -> None:
    functions = [WholeText(), Choices(["a", "b"]), Choices(["b", "a"]), Pattern("a"), Pattern("b"), Fields(["/a"])]
    described = [repr(function.description()) for function in functions]
    assert len(set(described)) == len(functions)
