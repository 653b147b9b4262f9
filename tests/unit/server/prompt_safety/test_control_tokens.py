"""The model's own tokens in text."""

import copy
import json
import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import ApiError
from server.prompt_safety.control_tokens import ControlTokens
from server.prompt_safety.folding import _INVISIBLE, MAX_MARKS

TOKENS = ("<image>", "<|image_pad|>")
CONTROL = ControlTokens(TOKENS)
MOST = 100_000


def body(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **more}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


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
    CONTROL.neutralise_body(made, MOST)
    assert made == expected


def test_keys_are_text_too() -> None:
    made = body("a", tools=[{"function": {"parameters": {"properties": {"<image>": {}}}}}])
    CONTROL.neutralise_body(made, MOST)
    assert "<image>" not in json.dumps(made)


def test_what_is_not_prompt_stays() -> None:
    made = body("a", stop=["<image>"], bad_words=["<image>"], model="<image>", user="<image>")
    expected = copy.deepcopy(made)
    CONTROL.neutralise_body(made, MOST)
    assert made == expected


def test_arguments_of_tool_calls_are_read_as_vllm_reads_them() -> None:
    def call(arguments: str) -> dict[str, Any]:
        made = {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": arguments}}]}]}
        CONTROL.neutralise_body(made, MOST)
        return str(made["messages"][0]["tool_calls"][0]["function"]["arguments"])

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
    CONTROL.neutralise_body(made, MOST)
    seen = unicodedata.normalize("NFKC", made["messages"][0]["content"])
    assert not any(token in seen for token in TOKENS)
    assert "look: < " in seen


@pytest.mark.parametrize(
    "harmless", ["a < b > c", "Ｆｕｌｌ width, ﬁne", "<IMAGE>", "e\u0301\u200d👩‍🚀", "<images>", "x\n\ty", ""]
)
def test_other_text_stays_as_it_is(harmless: str) -> None:
    made = body(harmless)
    CONTROL.neutralise_body(made, MOST)
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
        CONTROL.neutralise_body(body(content), MOST)
    assert (caught.value.status, caught.value.code) == (400, "split_control_token")


def test_tokens_in_pieces_over_messages_are_refused() -> None:
    with pytest.raises(ApiError, match="next to each other"):
        CONTROL.neutralise_body(
            {"messages": [{"role": "user", "content": "<im"}, {"role": "user", "content": "age>"}]}, MOST
        )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="<>|#imageIMAGEpd_ ＜＞\u200b\x01", max_size=40), min_size=1, max_size=4))
def test_no_text_becomes_a_token(parts: list[str]) -> None:
    made = body([text(part) for part in parts])
    try:
        CONTROL.neutralise_body(made, MOST)
    except ApiError:
        return
    for joint in ("", " ", "\n"):
        prompt = joint.join(part["text"] for part in made["messages"][0]["content"])
        assert not any(token in prompt for token in TOKENS)


@pytest.mark.parametrize(
    ("content", "more", "path"),
    [
        ("x" * 101, {}, "messages.0.content"),
        ([text("x" * 40), text("<" * 61)], {}, "messages.0.content.1.text"),
        ("<" + "\ufdfa" * 6, {}, "messages.0.content"),  # a word of 18 characters each
        ("x" * 50, {"tools": [{"function": {"y" * 51: 1}}]}, "tools.0.function"),
        ("x" * 50, {"tools": [{"function": {"arguments": '["' + "\\u003c" * 9 + '"]'}}]}, "tools.0.function.arguments"),
    ],
)
def test_text_beyond_the_limit_is_refused(content: Any, more: dict[str, Any], path: str) -> None:
    with pytest.raises(ApiError, match="more than 100 characters") as caught:
        CONTROL.neutralise_body(body(content, **more), 100)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "text_too_long", path)


def test_text_up_to_the_limit_passes() -> None:
    made = body([text("x" * 50), text("＜" + "ﬁ" * 20)])
    expected = copy.deepcopy(made)
    names = len("roleusercontent") + 2 * len("typetexttext")
    CONTROL.neutralise_body(made, names + 50 + 41)
    assert made == expected
    with pytest.raises(ApiError, match="more than 129 characters"):
        CONTROL.neutralise_body(made, names + 50 + 40)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="<>|#image_pd ＜＞\u200b\u0338\u226eｉﬁ\ufdfa\u3160\u1100\u0301\u0316\U000e0067", max_size=60))
def test_what_is_made_of_a_text_is_what_the_whole_at_once_would_give(value: str) -> None:
    def split(text: str) -> str:
        for token in CONTROL._tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    expected = split(value)
    visible = _INVISIBLE.sub("", expected)
    folded = _INVISIBLE.sub("", unicodedata.normalize("NFKC", visible))
    if any(token in folded for token in CONTROL._tokens):
        expected = split(folded)
    made = body(value)
    CONTROL.neutralise_body(made, MOST)
    assert made["messages"][0]["content"] == expected


def test_marks_without_end_are_refused() -> None:
    with pytest.raises(ApiError, match=f"more than {MAX_MARKS} combining marks") as caught:
        CONTROL.neutralise_body(body("a<" + "\u0301" * 40_000 + "\u0316" * 40_000), MOST)
    assert (caught.value.status, caught.value.code) == (400, "too_many_marks")
    assert caught.value.param == "messages.0.content"


@pytest.mark.parametrize(
    "token", ["<image>", "[IMG]", "<\uff5cuser\uff5c>", "\uac01<", "\u00e9<x>", "\ufb01x", "\u0301x"]
)
def test_no_first_character_is_missed(token: str) -> None:
    """All that has one in its compatibility form, and the token as it is, is looked at."""
    control = ControlTokens([token])
    assert control._openings.search(token)
    first = "".join(unicodedata.normalize("NFKC", token))[0]
    for code in range(sys.maxunicode + 1):
        if first in unicodedata.normalize("NFKC", chr(code)):
            assert control._openings.search(chr(code)), hex(code)


@pytest.mark.parametrize("disguised", ["＜image＞", "<ima\u200bge>", "<image>"])
@pytest.mark.parametrize("fill", ["漢字，", "\u3160", "e\u0301", "a\u0301\u0316 ", "각", "\u1100\u1161\u11a8", "x"])
@pytest.mark.parametrize("offset", [0, 120, 127, 128, 65_530])
def test_tokens_are_found_wherever_a_long_text_is_cut(disguised: str, fill: str, offset: int) -> None:
    before = (fill * (offset // len(fill) + 1))[:offset]
    made = body(before + disguised + fill * 50)
    CONTROL.neutralise_body(made, MOST)
    assert "<image>" not in unicodedata.normalize("NFKC", made["messages"][0]["content"]).replace("\u200b", "")
