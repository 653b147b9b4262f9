"""Detects misspelt FS_… environment variables, which would otherwise be ignored silently."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from server.settings.gateway import CONFIG_FILE_VARIABLE, Settings

PREFIX = Settings.model_config["env_prefix"]
CLIENT_KEY_VARIABLE = "FS_API_KEY"
# Used by other commands and by docker-compose.yml.
_NOT_SETTINGS = frozenset({CONFIG_FILE_VARIABLE, CLIENT_KEY_VARIABLE, "FS_URL", "FS_VERSION", "FS_PUBLISH"})


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Returns a message for each unknown name that begins with FS_, with the most similar setting."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    lines = []
    for name in sorted(names):
        upper = name.upper()  # the names of settings are case-insensitive
        if upper.startswith(PREFIX) and upper not in known | _NOT_SETTINGS:
            close = get_close_matches(upper, known, n=1)
            lines.append(f"there is no setting {name}" + (f"; is {close[0]} meant?" if close else ""))
    return lines
