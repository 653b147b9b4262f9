"""Values of a JSON body that cannot be sent on: no form in JSON or UTF-8, or nested without end."""

from __future__ import annotations

import math
from typing import Any

from server.errors import invalid

MAX_DEPTH = 64


def check_json(data: Any) -> None:
    """Goes through a parsed body.

    Raises:
        ApiError: 400: nesting beyond 64, a number beyond the range of floats, half of a surrogate pair.
    """
    level: list[tuple[str, Any]] = [("", data)]
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for path, value in level:
            if isinstance(value, dict):
                for key, item in value.items():
                    _check_text(key)
                    below.append((f"{path}.{key}" if path else key, item))
            elif isinstance(value, list):
                below += [(f"{path}.{index}", item) for index, item in enumerate(value)]
            elif isinstance(value, str):
                _check_text(value)
            elif isinstance(value, float) and not math.isfinite(value):
                raise invalid(f"{path}: the number is beyond the range of numbers", path)
        if not below:
            return
        level = below
    raise invalid(f"the body is nested more than {MAX_DEPTH} deep", code="invalid_json")


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid("the body holds half of a surrogate pair, which is no character", code="invalid_json") from None
