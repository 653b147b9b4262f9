"""NFKC in pieces against NFKC of the whole."""

import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.prompt_safety import folding
from server.prompt_safety.folding import MAX_MARKS, TooManyMarksError, fold

# What combines with what is before or behind it, moves, stands for others, or is dropped.
AWKWARD = (
    "a<e\u0301\u0308\u0316\u0338\u0345\u0323 \u226e\uff1c\ufb01\ufdfa\u3320\u00bd\u1e9b\u0344\u0958"
    "\u1100\u1161\u11a8\u3131\u3160\uffa1\uffc2\uac00\uac01\u304b\u3099\uff76\uff9e\u09c7\u09be\u0dd9\u0dcf\u0dca"
    "\u1025\u102e\u0fb2\u0f71\u0f80\u1b05\u1b35\U00011131\U00011127\U0001d15e\U0002f800\u200b\ufe0f\u3164\u0e33"
)
texts = st.text(alphabet=st.one_of(st.sampled_from(AWKWARD), st.characters()), max_size=60)


def whole(text: str) -> str:
    drop = folding._INVISIBLE
    return drop.sub("", unicodedata.normalize("NFKC", drop.sub("", text)))


@pytest.fixture
def cut_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces end at the first place where they may."""
    monkeypatch.setattr(folding, "_PIECE", 1)


@settings(max_examples=500, deadline=None)
@given(texts)
def test_pieces_make_the_whole(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "_PIECE", 1)
        assert "".join(fold(text)) == whole(text)


@settings(max_examples=100, deadline=None)
@given(texts, texts, st.integers(0, 200))
def test_pieces_of_long_texts_make_the_whole(first: str, second: str, times: int) -> None:
    text = first + second * times
    try:
        assert "".join(fold(text)) == whole(text)
    except TooManyMarksError:
        assert len(second) * times + len(first) > MAX_MARKS


@pytest.mark.usefixtures("cut_everywhere")
def test_no_composition_is_cut() -> None:
    """Every character that NFC composes, Hangul included, from its parts."""
    for code in range(sys.maxunicode + 1):
        parts = unicodedata.normalize("NFD", chr(code))
        if len(parts) > 1:
            assert "".join(fold(f"x{parts}")) == whole(f"x{parts}"), hex(code)


@pytest.mark.usefixtures("cut_everywhere")
def test_every_character_behind_every_kind_of_character() -> None:
    before = [character + mark for character in "a<\u1100\uac00\u304b\u09c7\u0dd9" for mark in ("", "\u0301")]
    for code in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(code), "")
        if not name or name.startswith(("CJK UNIFIED", "TANGUT", "HANGUL SYLLABLE")):
            continue  # tens of thousands of one kind
        text = "".join(start + chr(code) for start in before)
        assert "".join(fold(text)) == whole(text), hex(code)


def test_characters_beyond_those_that_are_looked_at_are_plain() -> None:
    for code in range(folding._CODE_POINTS.stop, sys.maxunicode + 1):
        assert not unicodedata.decomposition(chr(code))
        assert not unicodedata.combining(chr(code))


@pytest.mark.parametrize(
    "unit", ["\ufdfa", "漢字，", "\u3160", "e\u0301", "각", "\u1100\u1161\u11a8", "\u304b\u3099", "ที่นี่", "\u00bd"]
)
def test_parts_are_short(unit: str) -> None:
    parts = list(fold(unit * 20_000))
    assert "".join(parts) == whole(unit * 20_000)
    assert max(map(len, parts)) <= 18 * (folding._PIECE + MAX_MARKS)


@pytest.mark.parametrize("mark", ["\u0301", "\u0316\u0301", "\u11a8", "\u3099"])
def test_marks_without_end_are_refused(mark: str) -> None:
    with pytest.raises(TooManyMarksError):
        list(fold("a" + mark * 40_000))


def test_invisible_characters_do_not_count_as_marks() -> None:
    text = "a" + "\u0301\u200b\ufe0f" * MAX_MARKS + "<"
    assert "".join(fold(text)) == whole(text)
