"""Access files for tests: tenants whose keys are their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from server.access.keys import digest_of


def key_of(tenant: str) -> str:
    return f"fs-key-of-{tenant}"


def write_access(path: Path, **tenants: dict[str, Any]) -> Path:
    """Each tenant has one key, :func:`key_of` its name, unless ``keys`` says otherwise."""
    entries = {
        name: {"keys": [{"sha256": digest_of(key_of(name)).hex()}], **settings} for name, settings in tenants.items()
    }
    path.write_text(yaml.safe_dump({"tenants": entries}))
    return path


def bearer(tenant: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key_of(tenant)}"}
