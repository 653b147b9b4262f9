"""Lists that environment and flags give as one text."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

T = TypeVar("T")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


# A list, or its parts separated by commas.
CommaList = Annotated[list[T], NoDecode, BeforeValidator(_split)]
