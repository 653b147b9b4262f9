"""What is voted on: functions of an answer, fixed before any copy is drawn.

Each gives a value for each of its names, or None where it finds none; None never wins a vote. A function must not
depend on anything but the answer, so that it is one function of a noisy copy (docs/guarantee.md section 14).
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol

import re2

Value = str

MAX_PATTERN = 1000
"""Most characters of a pattern."""

MAX_CHOICES = 100
MAX_FIELDS = 16
_FINAL_MARKS = ".!?…。！？ "
_PROBES = ("", "a", "Yes.", "No, 12.50", "the answer is b\nc", "{}", "\x00", "ÄÖ あ 😀")
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")


class ReadingError(ValueError):
    """A function that cannot be voted on; the message says why."""


class Reading(Protocol):
    """A function of an answer.

    Attributes:
        kind: Which sort of function.
        names: One for each value that it gives.
    """

    kind: str
    names: tuple[str, ...]

    def __call__(self, text: str, finished: bool) -> tuple[Value | None, ...]:
        """The values, in the order of ``names``.

        Args:
            text: Of the answer.
            finished: Whether the model ended it, rather than a limit of its length.
        """
        ...

    def description(self) -> dict[str, Any]:
        """All that the function depends on, as JSON."""
        ...


def normalised(text: str) -> str:
    """The text in Unicode's form C, in folded case, with single spaces, without marks that end it.

    Example:
        >>> normalised("  It is\\n RED. ")
        'it is red'
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split()).rstrip(_FINAL_MARKS)


class WholeText:
    """The whole answer, normalised. One that was cut off, or is empty, has no value."""

    kind = "text"
    names: tuple[str, ...] = ("text",)

    def __call__(self, text: str, finished: bool) -> tuple[Value | None, ...]:
        """See :class:`Reading`."""
        return ((normalised(text) or None) if finished else None,)

    def description(self) -> dict[str, Any]:
        """See :class:`Reading`."""
        return {"kind": self.kind}


class Choices:
    """Which of some texts the answer is, compared when normalised; the value is the choice as it was given.

    Args:
        choices: At least two.

    Raises:
        ReadingError: They are too few or too many, or two of them are the same.
    """

    kind = "choices"
    names: tuple[str, ...] = ("text",)

    def __init__(self, choices: Sequence[str]) -> None:
        if not 2 <= len(choices) <= MAX_CHOICES:
            raise ReadingError(f"must be 2 to {MAX_CHOICES} texts, got {len(choices)}: one choice is no vote")
        self.choices = tuple(choices)
        self._known: dict[str, str] = {}
        for choice in self.choices:
            name = normalised(choice)
            if not name:
                raise ReadingError(f"{choice!r} has no text to choose")
            if name in self._known:
                raise ReadingError(
                    f"{self._known[name]!r} and {choice!r} are the same but for case, white space and final marks; "
                    "leave one of them out"
                )
            self._known[name] = choice

    def __call__(self, text: str, finished: bool) -> tuple[Value | None, ...]:
        """See :class:`Reading`."""
        return (self._known.get(normalised(text)) if finished else None,)

    def description(self) -> dict[str, Any]:
        """See :class:`Reading`."""
        return {"kind": self.kind, "choices": list(self.choices)}


class Pattern:
    """The first match of a regular expression, or its first group if it has one, normalised.

    Args:
        pattern: In RE2's syntax, which takes linear time whatever the answer.

    Raises:
        ReadingError: It is not one, is too large, or gives one value whatever the answer.
    """

    kind = "pattern"
    names: tuple[str, ...] = ("text",)

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise ReadingError(f"has {len(pattern)} characters; at most {MAX_PATTERN} are read")
        options = re2.Options()
        options.log_errors = False
        options.max_mem = 2**20
        try:
            self._expression = re2.compile(pattern, options=options)
        except re2.error as error:
            reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
            raise ReadingError(f"is no regular expression of RE2: {reason}") from None
        self.pattern = pattern
        self._group = 1 if self._expression.groups else 0
        matches = [self._expression.search(probe) for probe in _PROBES]
        found = {None if match is None else match.group(self._group) for match in matches}
        if len(found) == 1 and None not in found:
            raise ReadingError(
                "gives one value whatever the answer, so a vote on it says nothing; let its first group, or match, "
                "be what is to be certified"
            )

    def __call__(self, text: str, finished: bool) -> tuple[Value | None, ...]:
        """See :class:`Reading`. It also reads answers that were cut off: what it finds is a function of them too."""
        match = self._expression.search(text)
        group = None if match is None else match.group(self._group)
        return ((None if group is None else normalised(group)) or None,)

    def description(self) -> dict[str, Any]:
        """See :class:`Reading`."""
        return {"kind": self.kind, "pattern": self.pattern}


class Fields:
    """Values within an answer that is JSON, each with a vote of its own.

    Args:
        pointers: JSON pointers (RFC 6901), such as ``/total``.

    Raises:
        ReadingError: One is no pointer, two are the same, or they are none or too many.
    """

    kind = "fields"

    def __init__(self, pointers: Sequence[str]) -> None:
        if not 1 <= len(pointers) <= MAX_FIELDS:
            raise ReadingError(f"must be 1 to {MAX_FIELDS} JSON pointers, got {len(pointers)}")
        if len(set(pointers)) < len(pointers):
            raise ReadingError("holds one JSON pointer twice; leave one of them out")
        for pointer in pointers:
            if not _POINTER.fullmatch(pointer):
                raise ReadingError(f"{pointer!r} is no JSON pointer (RFC 6901), such as /total or /items/0/price")
        self.names = tuple(pointers)
        self._steps = [
            [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]] for pointer in pointers
        ]

    def __call__(self, text: str, finished: bool) -> tuple[Value | None, ...]:
        """See :class:`Reading`."""
        nothing = (None,) * len(self.names)
        if not finished:
            return nothing
        try:
            answer = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return nothing
        return tuple(_canonical(answer, steps) for steps in self._steps)

    def description(self) -> dict[str, Any]:
        """See :class:`Reading`."""
        return {"kind": self.kind, "fields": list(self.names)}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _canonical(value: Any, steps: Sequence[str]) -> Value | None:
    """The value that a pointer's steps lead to, as JSON of one form; None if they lead nowhere."""
    for step in steps:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and re.fullmatch(r"0|[1-9][0-9]{0,8}", step) and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    try:
        return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None


def _plain(value: Any) -> Any:
    """The value with texts in Unicode's form C, and whole numbers written one way: 12.0 is 12."""
    if isinstance(value, dict):
        return {unicodedata.normalize("NFC", key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is too large")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    return value
