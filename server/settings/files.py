"""Operators' YAML files: safe parsing, and detection of changes at runtime.

Error messages quote nothing of a file's contents but names.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)


def parse_yaml(contents: bytes, schema: type[M]) -> M:
    """Parses YAML and validates it by ``schema``.

    Raises:
        ValueError: It is not valid YAML, or does not fit the schema; the message says what and where.
    """
    try:
        return schema.model_validate(yaml.load(contents, Loader=_StrictLoader))  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"not valid YAML{where}: {getattr(error, 'problem', None) or 'bad characters'}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(_problem(error)) from None


def _problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deeply" if isinstance(error, RecursionError) else str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"


class _StrictLoader(yaml.SafeLoader):
    """Refuses duplicate keys in a mapping, where YAML would silently take the last one."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for name in names:
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(problem=f"{name!r} appears twice", problem_mark=node.start_mark)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


WATCH_SECONDS = 1.0


class WatchedFile:
    """Detects when the contents of a file change.

    It compares contents and not modification times, which works on every file system and for symbolic links that an
    orchestrator swaps.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen = self._read()

    def contents(self) -> bytes:
        """Returns the contents at the last look.

        Raises:
            OSError: The file could not be read.
        """
        seen = self._seen
        if isinstance(seen, str):
            raise OSError(seen)
        return seen

    async def has_changed(self) -> bool:
        """Reads the file again. Returns whether :meth:`contents` has changed."""
        found = await asyncio.to_thread(self._read)
        changed, self._seen = found != self._seen, found
        return changed

    def _read(self) -> bytes | str:
        """The contents, or what is wrong with reading them."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            return f"{self.path} cannot be read: {error.strerror}"
