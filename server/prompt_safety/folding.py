"""Unicode's compatibility form (NFKC) of long texts, made in pieces.

``unicodedata.normalize`` keeps the interpreter's lock until it is done, which takes seconds for megabytes, and it sorts
combining marks in quadratic time. So a text is cut at the boundaries of UAX #15, before characters that neither move
nor combine with what is before them: there NFKC of a text is NFKC of its parts, one after another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from functools import cache

_PIECE = 128
# Languages write a handful of marks on a letter; the stream-safe format of UAX #15 allows 30.
MAX_MARKS = 64
# No character beyond is a mark or stands for others.
_CODE_POINTS = range(0x30000)

# Characters that normalisers of tokenizers drop: controls but for white space, and invisible ones.
_INVISIBLE = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_AT_ONCE = 2**16

_LEADING_JAMO, _VOWEL_JAMO, _TRAILING_JAMO = range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)


class TooManyMarksError(ValueError):
    """More than :data:`MAX_MARKS` combining marks follow one another."""


def fold(text: str) -> Iterator[str]:
    """The text as a normaliser might hand it to a tokenizer: in compatibility form, without invisible characters.

    Yields:
        Parts of it, each after a millisecond or less.

    Raises:
        TooManyMarksError: There is no place to cut it.
    """
    parts = (_INVISIBLE.sub("", text[start : start + _AT_ONCE]) for start in range(0, len(text), _AT_ONCE))
    visible = "".join(parts)
    if visible.isascii():
        yield visible
        return
    for piece in _pieces(visible):
        yield _INVISIBLE.sub("", unicodedata.normalize("NFKC", piece))


def characters_folding_to(wanted: Iterable[str]) -> re.Pattern[str]:
    """Matches the characters without which no folded text has a character of ``wanted``.

    A character of a folded text was in the text, or is a part of one that was, or was composed of such parts. So the
    first part of it, fully decomposed, is a part of some character of the text.
    """
    firsts = {unicodedata.normalize("NFKD", character)[0] for character in wanted}
    holding = (chr(code) for code in _CODE_POINTS if not firsts.isdisjoint(unicodedata.normalize("NFKD", chr(code))))
    return re.compile(_class_of({*firsts, *holding}))


def _pieces(text: str) -> Iterator[str]:
    boundary, start = _boundary(), 0
    while start < len(text):
        least, most = start + _PIECE, start + _PIECE + MAX_MARKS
        found = boundary.search(text, least, most + 1)
        if found is None and len(text) > most:
            raise TooManyMarksError
        end = len(text) if found is None else found.start()
        yield text[start:end]
        start = end


@cache
def _boundary() -> re.Pattern[str]:
    """Matches a character before which a text can be cut."""
    second = {
        int(parts[1], 16)
        for parts in (unicodedata.decomposition(chr(code)).split() for code in _CODE_POINTS)
        if len(parts) == 2 and not parts[0].startswith("<")
    }
    second.update(_VOWEL_JAMO, _TRAILING_JAMO)
    moving: set[str] = set()
    vowels: set[str] = set()
    leading: set[str] = set()
    for code in _CODE_POINTS:
        character = chr(code)
        parts = unicodedata.normalize("NFKD", character)
        if unicodedata.combining(parts[0]) or ord(parts[0]) in second:
            (vowels if ord(parts[0]) in _VOWEL_JAMO else moving).add(character)
        if ord(parts[-1]) in _LEADING_JAMO:
            leading.add(character)
    # A vowel of Hangul combines with a leading consonant only, and Koreans write it many times in a row.
    behind = _class_of(leading)
    return re.compile(f"[^{_class_of(moving | vowels)[1:]}|(?<!{behind}){_class_of(vowels)}")


def _class_of(characters: Collection[str]) -> str:
    return f"[{''.join(re.escape(character) for character in sorted(characters))}]"
