"""What goes on to the language model server."""

import copy
import json
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.api.passthrough import REFUSED_FIELDS, ControlTokens, check_template_variables, refuse_fields
from server.errors import ApiError

TOKENS = ("<image>", "<|image_pad|>")
CONTROL = ControlTokens(TOKENS)


def body(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


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


EVERYWHERE: list[tuple[Any, ...]] = [
    ("messages", 0, "content"),
    ("messages", 1, "content", 0, "text"),
    ("messages", 1, "content", 0, "cache_control", "x"),
    ("messages", 2, "name"),
    ("messages", 2, "reasoning"),
    ("messages", 2, "reasoning_content"),
    ("messages", 2, "task"),
    ("messages", 2, "refusal"),
    ("messages", 2, "tool_calls", 0, "id"),
    ("messages", 2, "tool_calls", 0, "function", "name"),
    ("messages", 3, "content"),
    ("messages", 3, "tool_call_id"),
    ("messages", 4, "tools", 0, "function", "description"),
    ("tools", 0, "function", "name"),
    ("tools", 0, "function", "description"),
    ("tools", 0, "function", "parameters", "properties", "city", "enum", 0),
    ("tool_choice", "function", "name"),
    ("documents", 0, "title"),
    ("documents", 0, "text"),
    ("chat_template_kwargs", "date"),
    ("response_format", "json_schema", "description"),
    ("structured_outputs", "choice", 0),
    ("some_future_field", "text"),
]


def everywhere(place: tuple[Any, ...], value: str) -> dict[str, Any]:
    made: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": "a"},
            {"role": "user", "content": [text("b") | {"cache_control": {"x": "y"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            {"role": "tool", "content": "c", "tool_call_id": "1"},
            {"role": "developer", "content": "d", "tools": [{"function": {}}]},
        ],
        "tools": [{"function": {"parameters": {"properties": {"city": {"enum": [""]}}}}}],
        "tool_choice": {"function": {}},
        "documents": [{}],
        "chat_template_kwargs": {},
        "response_format": {"json_schema": {}},
        "structured_outputs": {"choice": [""]},
        "some_future_field": {},
    }
    inner: Any = made
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    return made


@pytest.mark.parametrize("place", EVERYWHERE, ids=lambda place: ".".join(map(str, place)))
def test_tokens_are_defused_wherever_text_can_be(place: tuple[Any, ...]) -> None:
    made = everywhere(place, "x <image> <##IMAGE##>")
    expected = everywhere(place, "x < image> < ##IMAGE##>")
    CONTROL.defuse_body(made)
    assert made == expected


def test_keys_are_text_too() -> None:
    made = body("a", tools=[{"function": {"parameters": {"properties": {"<image>": {}}}}}])
    CONTROL.defuse_body(made)
    assert "<image>" not in json.dumps(made)


def test_what_is_not_prompt_stays() -> None:
    made = body("a", stop=["<image>"], bad_words=["<image>"], model="<image>", user="<image>")
    expected = copy.deepcopy(made)
    CONTROL.defuse_body(made)
    assert made == expected


def test_arguments_of_tool_calls_are_read_as_vllm_reads_them() -> None:
    def call(arguments: str) -> dict[str, Any]:
        made = {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": arguments}}]}]}
        CONTROL.defuse_body(made)
        return str(made["messages"][0]["tool_calls"][0]["function"]["arguments"])  # type: ignore[index]

    assert json.loads(call('{"a": "\\u003cimage\\u003e", "\\u003cimage>": ["<ima\\u0067e>"]}')) == {
        "a": "< image>",
        "< image>": ["< image>"],
    }
    unchanged = '{ "city":"Z\\u00fcrich" }'
    assert call(unchanged) == unchanged
    assert call("not json <image>") == "not json < image>"
    assert call("[" * 5000) == "[" * 5000


@pytest.mark.parametrize(
    "disguised",
    [
        "\uff1cimage\uff1e",  # full-width brackets
        "<\uff49mage>",
        "<ima\u200bge>",  # zero width space
        "<ima\u00adge>",  # soft hyphen
        "<im\x01age>",
        "\ufeff<image\u2060>",
        "\ufe64image\ufe65",  # small brackets
        "<𝐢𝐦𝐚𝐠𝐞>",
        "<|image\uff3fpad|>",
        "<\uff5cimage_pad\uff5c>",
        "<ima\U000e0067ge>",  # tag letter
        "<image\ufe0f>",
    ],
)
def test_spellings_that_a_normaliser_makes_a_token(disguised: str) -> None:
    made = body(f"look: {disguised}!")
    CONTROL.defuse_body(made)
    seen = unicodedata.normalize("NFKC", made["messages"][0]["content"])
    assert not any(token in seen for token in TOKENS)
    assert "look: < " in seen


@pytest.mark.parametrize(
    "harmless", ["a < b > c", "Ｆｕｌｌ width, ﬁne", "<IMAGE>", "e\u0301\u200d👩‍🚀", "<images>", "x\n\ty", ""]
)
def test_other_text_stays_as_it_is(harmless: str) -> None:
    made = body(harmless)
    CONTROL.defuse_body(made)
    assert made["messages"][0]["content"] == harmless


@pytest.mark.parametrize(
    "content",
    [
        [text("<ima"), text("ge>")],
        [text("<ima "), text("\nge>")],
        [text(c) for c in "<image>"],
        [text("<"), {"type": "smoothed_image", "index": 0}, text("image>")],
        [{"type": "refusal", "refusal": "<|image"}, text("_pad|>")],
        [text("＜ima"), text("ge>")],
    ],
)
def test_tokens_in_pieces_are_refused(content: Any) -> None:
    with pytest.raises(ApiError) as caught:
        CONTROL.defuse_body(body(content))
    assert (caught.value.status, caught.value.code) == (400, "split_control_token")


def test_tokens_in_pieces_over_messages_are_refused() -> None:
    with pytest.raises(ApiError, match="next to each other"):
        CONTROL.defuse_body({"messages": [{"role": "user", "content": "<im"}, {"role": "user", "content": "age>"}]})


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="<>|#imageIMAGEpd_ ＜＞\u200b\x01", max_size=40), min_size=1, max_size=4))
def test_no_text_becomes_a_token(parts: list[str]) -> None:
    made = body([text(part) for part in parts])
    try:
        CONTROL.defuse_body(made)
    except ApiError:
        return
    for joint in ("", " ", "\n"):
        prompt = joint.join(part["text"] for part in made["messages"][0]["content"])
        assert not any(token in prompt for token in TOKENS)
