"""Environment variables whose names begin with FS_: one that is misspelt would be a setting that is not in force."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from server.settings.gateway import CONFIG_FILE_VARIABLE, Settings

PREFIX = Settings.model_config["env_prefix"]
CLIENT_KEY_VARIABLE = "FS_API_KEY"
# Of the other commands, and of docker-compose.yml itself.
_NOT_SETTINGS = frozenset({CONFIG_FILE_VARIABLE, CLIENT_KEY_VARIABLE, "FS_URL", "FS_VERSION", "FS_PUBLISH"})


def unknown_variables(names: Iterable[str]) -> list[str]:
    """A line for each name that begins with FS_ and is of nothing here, with the name that it resembles most."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    lines = []
    for name in sorted(names):
        upper = name.upper()  # as settings are found
        if upper.startswith(PREFIX) and upper not in known | _NOT_SETTINGS:
            close = get_close_matches(upper, known, n=1)
            lines.append(f"there is no setting {name}" + (f"; is {close[0]} meant?" if close else ""))
    return lines
