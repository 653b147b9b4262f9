"""Unicode compatibility normalisation (NFKC) of long texts, in small pieces.

``unicodedata.normalize`` holds the GIL until it is done, which takes seconds for megabytes, and it sorts combining
marks in quadratic time. So the text is cut at normalisation boundaries (UAX #15): before characters that neither
reorder nor combine with preceding ones. There the NFKC of a text is the concatenation of the NFKC of its parts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator
from functools import cache

_PIECE = 128
# Languages write a handful of marks on a letter; the stream-safe format of UAX #15 allows 30.
MAX_MARKS = 64
# Beyond this range no character is a mark or has a decomposition.
_CODE_POINTS = range(0x30000)

# Characters that tokenizers' normalisers drop: control characters except white space, and invisible ones.
_INVISIBLE = re.compile(
    "[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)
_BLOCK = 2**16

_LEADING_JAMO, _VOWEL_JAMO, _TRAILING_JAMO = range(0x1100, 0x1113), range(0x1161, 0x1176), range(0x11A8, 0x11C3)


class TooManyMarksError(ValueError):
    """More than :data:`MAX_MARKS` combining marks follow one another."""


def fold(text: str) -> Iterator[str]:
    """Normalises text as a tokenizer might: NFKC, without invisible characters.

    Yields:
        Parts of the normalised text, each after a millisecond or less.

    Raises:
        TooManyMarksError: The text has no boundary to cut at.
    """
    parts = (_INVISIBLE.sub("", text[start : start + _BLOCK]) for start in range(0, len(text), _BLOCK))
    visible = "".join(parts)
    if visible.isascii():
        yield visible
        return
    for piece in _pieces(visible):
        yield _INVISIBLE.sub("", unicodedata.normalize("NFKC", piece))


def characters_folding_to(targets: Iterable[str]) -> re.Pattern[str]:
    """Compiles a pattern that matches every text whose folded form has a character of ``targets``.

    A folded character was in the text, comes from decomposing one, or was composed of such parts. In each case the
    first part of its full decomposition is a part of some character of the text.
    """
    firsts = {unicodedata.normalize("NFKD", character)[0] for character in targets}
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
    """Compiles a pattern that matches a character before which a text can be cut."""
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
    # A Hangul vowel combines with a leading consonant only; Koreans also repeat vowels many times without one.
    behind = _class_of(leading)
    return re.compile(f"[^{_class_of(moving | vowels)[1:]}|(?<!{behind}){_class_of(vowels)}")


def _class_of(characters: Collection[str]) -> str:
    return f"[{''.join(re.escape(character) for character in sorted(characters))}]"
