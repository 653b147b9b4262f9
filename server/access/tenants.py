"""The access file: tenants, the digests of their keys, and the settings that they have of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from server.access.keys import StoredKey
from server.settings.files import parse_yaml
from server.settings.request import RequestSettings

DEFAULT_TENANT = "default"
S = TypeVar("S", bound=RequestSettings)
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
    models: Annotated[list[str], Field(min_length=1)] | None = None


class _AccessFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: dict[TenantName, TenantEntry] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who a request belongs to. Its name keys limits, caches, logs and the prefix cache of the language model.

    Attributes:
        name: ``default`` for all requests of a server without keys, and for the keys of the setting ``api_keys``.
        settings: The server's, with the tenant's own in their place.
        overrides: Names and values of the latter.
        models: Names of the models that it may use; None for all.
    """

    name: str
    settings: RequestSettings
    overrides: dict[str, Any] = field(default_factory=dict)
    models: frozenset[str] | None = None

    def may_use(self, model: str) -> bool:
        """Whether the tenant may use a model of this name."""
        return self.models is None or model in self.models

    def settings_for(self, model: S) -> S:
        """A model's settings with the tenant's own in their place.

        What fits together for the server need not do so for every model: a tenant's default above a model's ceiling, or
        the other way round, becomes the ceiling.
        """
        if not self.overrides:
            return model
        merged = model.model_copy(update=self.overrides)
        held: dict[str, float] = {"samples": min(merged.samples, merged.max_samples)}
        if merged.sigma is not None:
            held["sigma"] = min(merged.sigma, merged.max_sigma)
        return merged.model_copy(update=held)


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
        file = parse_yaml(contents, _AccessFile)
    except ValueError as error:
        raise AccessFileError(str(error)) from None
    tenants: dict[str, Tenant] = {}
    keys: dict[bytes, StoredKey] = {}
    for name, entry in file.tenants.items():
        tenants[name] = _tenant(name, entry, server)
        for key in entry.keys:
            digest = bytes.fromhex(key.sha256)
            if digest in keys:
                raise AccessFileError(f"a key of tenant {name} is one of tenant {keys[digest].tenant} too")
            keys[digest] = StoredKey(digest, name, key.expires)
    return Access(tenants, tuple(keys.values()))


def _tenant(name: str, entry: TenantEntry, server: RequestSettings) -> Tenant:
    fields = RequestSettings.model_fields.keys()
    own = {each: getattr(entry, each) for each in fields & entry.model_fields_set}
    settings = RequestSettings(**{each: own.get(each, getattr(server, each)) for each in fields})
    if problem := settings.contradiction():
        raise AccessFileError(f"tenant {name}: {problem}")
    return Tenant(name, settings, own, None if entry.models is None else frozenset(entry.models))
