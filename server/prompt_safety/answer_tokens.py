"""The limit on the number of tokens of an answer."""

from __future__ import annotations

from typing import Any

from server.errors import invalid

LENGTH_FIELDS = ("max_completion_tokens", "max_tokens")  # OpenAI's newer name first


def cap_answer_tokens(body: dict[str, Any], ceiling: int | None, default: int | None) -> None:
    """Enforces the operator's limit on the tokens of an answer, summed over all ``n`` choices.

    A request without a limit of its own gets as many tokens as the ceiling allows.

    Args:
        body: The request; a limit is inserted if it has none.
        ceiling: Most tokens of an answer; None for no limit.
        default: The language model's own default length; None if it uses all of its context.

    Raises:
        ApiError: 400, naming the field.
    """
    if ceiling is None:
        return
    choices = _whole_number(body, "n") or 1
    asked = [name for name in LENGTH_FIELDS if _whole_number(body, name) is not None]
    for name in asked:
        if body[name] * choices > ceiling:
            times = f" for each of {choices} choices" if choices > 1 else ""
            raise invalid(f"{name} {body[name]}{times} is above this server's limit of {ceiling} tokens", name)
    if choices > ceiling:
        raise invalid(f"n {choices} is above this server's limit of {ceiling} tokens for all choices together", "n")
    if not asked:
        share = ceiling // choices
        if default is None or default > share:
            body[LENGTH_FIELDS[0]] = share


def _whole_number(body: dict[str, Any], name: str) -> int | None:
    """Returns a positive integer field. Language models also accept "100" and 100.0, which would bypass the limit."""
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise invalid(f"{name} must be a whole number of at least 1", name)
    return value
