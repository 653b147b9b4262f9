"""The access file: tenants, the digests of their keys, and the settings that they override."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    """One tenant: its keys, and the settings that it overrides."""

    keys: list[KeyEntry] = Field(default_factory=list)
    models: Annotated[list[str], Field(min_length=1)] | None = None


class _AccessFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenants: dict[TenantName, TenantEntry] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Tenant:
    """The owner of a request. Rate limits, caches, logs and the vLLM prefix cache are separate for each tenant name.

    Attributes:
        name: ``default`` if the server has no keys, and for keys of the setting ``api_keys``.
        settings: The server's settings with the overrides applied.
        overrides: The settings that the access file gives this tenant.
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
        """Returns a model's settings with the tenant's overrides applied.

        Defaults of the tenant may exceed ceilings of the model, or vice versa. They are lowered to the ceilings.
        """
        if not self.overrides:
            return model
        merged = model.model_copy(update=self.overrides)
        capped: dict[str, float] = {"samples": min(merged.samples, merged.max_samples)}
        if merged.sigma is not None:
            capped["sigma"] = min(merged.sigma, merged.max_sigma)
        return merged.model_copy(update=capped)


def contradiction_of(tenants: Iterable[Tenant], models: Mapping[str, RequestSettings]) -> str | None:
    """Describes what nothing can reach in the settings of a tenant together with those of a model that it may use.

    A tenant's own settings fit together, and a model's do; a minimum of the one may be too high for the samples of the
    other. None if all fit.
    """
    for tenant in tenants:
        for name, model in models.items():
            merged = tenant.settings_for(model)
            if tenant.may_use(name) and (problem := merged.contradiction()):
                return f"tenant {tenant.name} with model {name}: {problem}"
    return None


@dataclass(frozen=True, slots=True)
class Access:
    """All tenants and keys of one version of the access file."""

    tenants: dict[str, Tenant]
    keys: tuple[StoredKey, ...]


def read_access(path: Path, server: RequestSettings) -> Access:
    """Reads the access file.

    Args:
        path: YAML: ``tenants: {name: {keys: [{sha256: …}], samples_per_minute: …, …}}``.
        server: Settings that tenants override.

    Raises:
        AccessFileError: It cannot be read, or is not a valid access file.
    """
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise AccessFileError(f"{path} cannot be read: {error.strerror}") from None
    return parse_access(contents, server)


def parse_access(contents: bytes, server: RequestSettings) -> Access:
    """Parses the contents of an access file, like :func:`read_access`."""
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
                raise AccessFileError(f"a key of tenant {name} also belongs to tenant {keys[digest].tenant}")
            keys[digest] = StoredKey(digest, name, key.expires)
    return Access(tenants, tuple(keys.values()))


def _tenant(name: str, entry: TenantEntry, server: RequestSettings) -> Tenant:
    fields = RequestSettings.model_fields.keys()
    own = {each: getattr(entry, each) for each in fields & entry.model_fields_set}
    settings = RequestSettings(**{each: own.get(each, getattr(server, each)) for each in fields})
    if problem := settings.contradiction():
        raise AccessFileError(f"tenant {name}: {problem}")
    return Tenant(name, settings, own, None if entry.models is None else frozenset(entry.models))
