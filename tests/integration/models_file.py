"""Models files for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml


def write_models(path: Path, **models: dict[str, Any]) -> Path:
    """Names each model by its keyword, in order; in one step, as operators should."""
    entries = [{"name": name, **{key: _plain(value) for key, value in entry.items()}} for name, entry in models.items()]
    fresh = path.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"models": entries}, sort_keys=False))
    os.replace(fresh, path)
    return path


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
