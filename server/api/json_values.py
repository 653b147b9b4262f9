"""Parses JSON bodies, with limits on their number of values and depth, and refuses values that cannot be forwarded."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from server.errors import field_path, invalid

MAX_DEPTH = 64
# An ordinary request has some hundreds. A value of one or two bytes takes far more memory and time once parsed.
MAX_VALUES = 100_000
_DECODER = json.JSONDecoder()
_MARK = re.compile(r'["\[{,]')


def parse_json(raw: bytes) -> Any:
    """Parses and checks a body.

    Raises:
        ApiError: 400: not JSON, more than 100,000 values, or as :func:`check_json`.
    """
    try:
        text = raw.decode(json.detect_encoding(raw), "surrogatepass")
        _check_count(text)
        data = json.loads(text.removeprefix("\ufeff"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not valid JSON: {error}", code="invalid_json") from None
    check_json(data)
    return data


def check_json(data: Any) -> None:
    """Checks all values of a parsed body.

    Raises:
        ApiError: 400: nesting beyond 64, a number beyond the range of floats, half of a surrogate pair.
    """
    _check(data, [])


def _check(value: Any, keys: list[int | str]) -> None:
    """Checks a value and all below it. ``keys`` is its path, which becomes text only for an error."""
    if isinstance(value, (dict, list)):
        if len(keys) == MAX_DEPTH:
            raise invalid(f"the body is nested more than {MAX_DEPTH} deep", code="invalid_json")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str):
                _check_text(key)
            keys.append(key)
            _check(item, keys)
            keys.pop()
    elif isinstance(value, str):
        _check_text(value)
    elif isinstance(value, float) and not math.isfinite(value):
        path = field_path(keys)
        raise invalid(f"{path}: the number is beyond the range of 64-bit floats", path)


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid("the body holds half of a surrogate pair, which is no character", code="invalid_json") from None


def _check_count(text: str) -> None:
    """Refuses a body with too many values before parsing it.

    Each value follows the start, an opening bracket or a comma (so an empty list or object counts twice), and has at
    most two strings.
    """
    if sum(map(text.count, "[{,")) < MAX_VALUES:  # a quick upper bound: brackets and commas inside strings count too
        return
    place, values, texts = 0, 1, 0
    while mark := _MARK.search(text, place):
        if mark[0] == '"':
            texts += 1
            _, place = _DECODER.raw_decode(text, mark.start())
        else:
            place = mark.end()
            values += 1
        if values > MAX_VALUES or texts > 2 * MAX_VALUES:
            raise invalid(
                f"the body holds more than {MAX_VALUES} values (texts, numbers, lists and objects); "
                "send fewer messages, parts or list elements",
                code="too_many_values",
            )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
