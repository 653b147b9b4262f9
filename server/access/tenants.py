"""The access file: tenants, the digests of their keys, and the settings that they have of their own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from server.access.keys import StoredKey
from server.request_settings import RequestSettings

DEFAULT_TENANT = "default"
TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]{0,63}$")]


class AccessFileError(ValueError):
    """The access file cannot be used; the message says why, and holds nothing of its contents but names."""


class KeyEntry(BaseModel):
    """One key of a tenant."""

    model_config = ConfigDict(extra="forbid")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    name: str | None = None
    expires: datetime | None = None

    @field_validator("expires")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class TenantEntry(RequestSettings):
    """One tenant: its keys, and any of the settings that a tenant may have of its own."""

    keys: list[KeyEntry] = Field(default_factory=list)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: dict[TenantName, TenantEntry] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who a request belongs to. Its name keys limits, caches, logs and the prefix cache of the language model.

    Attributes:
        name: ``default`` for all requests of a server without keys, and for the keys of the setting ``api_keys``.
        settings: The server's, with the tenant's own in their place.
    """

    name: str
    settings: RequestSettings


@dataclass(frozen=True, slots=True)
class Access:
    """All tenants and keys at one time."""

    tenants: dict[str, Tenant]
    keys: tuple[StoredKey, ...]


def read_access(path: Path, server: RequestSettings) -> Access:
    """Reads the access file.

    Args:
        path: YAML: ``tenants: {name: {keys: [{sha256: …}], samples_per_minute: …, …}}``.
        server: Settings of tenants that have none of their own.

    Raises:
        AccessFileError: It cannot be read, or is not a valid access file.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise AccessFileError(f"{path} cannot be read: {error.strerror}") from None
    return parse_access(contents, server)


def parse_access(contents: bytes, server: RequestSettings) -> Access:
    """The same from the file's contents."""
    try:
        file = _File.model_validate(yaml.load(contents, Loader=_StrictLoader))  # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise AccessFileError(f"not valid YAML{where}: {getattr(error, 'problem', None) or 'bad characters'}") from None
    except (ValueError, RecursionError) as error:
        raise AccessFileError(_problem(error)) from None
    tenants: dict[str, Tenant] = {}
    keys: dict[bytes, StoredKey] = {}
    for name, entry in file.tenants.items():
        tenants[name] = Tenant(name, _merged(name, entry, server))
        for key in entry.keys:
            digest = bytes.fromhex(key.sha256)
            if digest in keys:
                raise AccessFileError(f"a key of tenant {name} is one of tenant {keys[digest].tenant} too")
            keys[digest] = StoredKey(digest, name, key.expires)
    return Access(tenants, tuple(keys.values()))


def _merged(name: str, entry: TenantEntry, server: RequestSettings) -> RequestSettings:
    own = RequestSettings.model_fields.keys() & entry.model_fields_set
    values = {field: getattr(entry if field in own else server, field) for field in RequestSettings.model_fields}
    settings = RequestSettings(**values)
    if problem := settings.contradiction():
        raise AccessFileError(f"tenant {name}: {problem}")
    return settings


def _problem(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "nested too deeply" if isinstance(error, RecursionError) else str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"


class _StrictLoader(yaml.SafeLoader):
    """Refuses a name that stands twice in a mapping: the second tenant would silently take the first one's place."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for name in names:
        if names.count(name) > 1:
            raise yaml.constructor.ConstructorError(problem=f"{name!r} stands twice", problem_mark=node.start_mark)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
