"""The file that keeps the finished results of a long measurement, so that it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fs_runtime.system.files import write_file

Key = TypeVar("Key", bound=Hashable, covariant=True)


class KeyedResult(Protocol[Key]):
    """A dataclass of JSON values with a key."""

    @property
    def key(self) -> Key:
        """Identifies the result."""
        ...


Result = TypeVar("Result", bound=KeyedResult[Hashable])


class ResultFile(Generic[Result]):
    """Finished results, one JSON line each, after a line with the settings of the measurement.

    An incomplete last line is dropped. Results of other settings are refused.

    Args:
        path: The file; created with its folder if it is missing.
        settings: Settings that all results share, as JSON values.
        parse: Makes a result from the values of its line.
        row_specific: Names of settings that affect some rows only. If one is None, here or in the file, those rows are
            missing there, and the value of the other side is used. Of a mapping this holds for each entry.

    Raises:
        ValueError: The file holds results of other settings, or a line that is not a result.
    """

    def __init__(
        self,
        path: Path,
        settings: dict[str, Any],
        parse: Callable[[dict[str, Any]], Result],
        row_specific: Sequence[str] = (),
    ) -> None:
        self._path = path
        self.results: dict[Hashable, Result] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        complete = text[: text.rfind("\n") + 1]
        settings = json.loads(json.dumps(settings))
        lines: list[str] = []
        if complete:
            head, *lines = complete.splitlines(keepends=True)
            try:
                found = json.loads(head)["settings"]
                results = [parse(json.loads(line)) for line in lines]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} does not hold cells of an evaluation ({error}): move it away") from None
            settings = _joined(path, found, settings, row_specific)
            self.results = {result.key: result for result in results}
        self.settings = settings
        contents = "".join((json.dumps({"settings": settings}) + "\n", *lines))
        if contents != text:
            write_file(path, contents.encode())

    def add(self, result: Result) -> None:
        """Stores a finished result; it is on disk when this returns.

        Raises:
            TrainingError: The disk is full or cannot be written.
        """
        line = json.dumps(dataclasses.asdict(result)) + "\n"  # type: ignore[call-overload]
        write_file(self._path, self._path.read_bytes() + line.encode())
        self.results[result.key] = result

    def attacked_path(self, name: str, settings: dict[str, Any]) -> Path:
        """Path of attacked images beside the file; it depends on the settings that they are made under."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return self._path.parent / "attacked" / f"{name}-{digest[:16]}.safetensors"


def _joined(path: Path, found: dict[str, Any], settings: dict[str, Any], row_specific: Sequence[str]) -> dict[str, Any]:
    """The union of both settings; ValueError if they differ."""
    found, settings = dict(found), dict(settings)
    differing = []
    for name in row_specific:
        one, other = found.get(name), settings.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            differing += [f"{name} {key}" for key in sorted(one.keys() & other.keys()) if one[key] != other[key]]
            found[name] = settings[name] = one | other
        elif one is None or other is None:
            found[name] = settings[name] = one or other
    differing += sorted(name for name in found | settings if found.get(name) != settings.get(name))
    if differing:
        raise ValueError(
            f"{path} was measured under other settings ({', '.join(differing)}): "
            "choose another output folder, or remove it to start again"
        )
    return settings
