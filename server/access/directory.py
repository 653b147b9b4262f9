"""The current keys and tenants, reloaded when the access file changes."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping

import structlog

from server.access.keys import StoredKey, find_key, parse_key_entry
from server.access.tenants import DEFAULT_TENANT, Access, AccessFileError, Tenant, contradiction_of, parse_access
from server.errors import ApiError
from server.observability.metrics import Metrics
from server.settings import files
from server.settings.files import WatchedFile
from server.settings.gateway import Settings
from server.settings.request import RequestSettings

log = structlog.get_logger("server.access")


class AccessDirectory:
    """The current keys and tenants.

    A new version of the access file replaces the old one completely. An invalid version is ignored: the old one stays
    in force, and log and metrics report it until the file is fixed.

    Args:
        settings: ``api_keys``, the access file, and default settings of tenants.
        models: Gives the settings of the models by name, with which those of tenants must fit.

    Raises:
        AccessFileError: The access file is invalid.
        KeyFormatError: An entry of ``api_keys`` is invalid.
    """

    def __init__(self, settings: Settings, models: Callable[[], Mapping[str, RequestSettings]] = dict) -> None:
        self._settings = settings
        self._models = models
        self._file = WatchedFile(settings.access_file) if settings.access_file else None
        self._salt_key = (
            settings.cache_salt_key.get_secret_value().encode() if settings.cache_salt_key else secrets.token_bytes(32)
        )
        self._own_keys = tuple(
            StoredKey(parse_key_entry(key.get_secret_value()), DEFAULT_TENANT) for key in settings.api_keys
        )
        self._access = Access({}, ()) if self._file is None else self._parse(self._file)

    @property
    def is_open(self) -> bool:
        """Whether no authentication is required, because neither ``api_keys`` nor an access file is set."""
        return not self._own_keys and self._file is None

    @property
    def tenants(self) -> list[Tenant]:
        """The tenants of the access file."""
        return list(self._access.tenants.values())

    def authenticate(self, authorization: list[str]) -> Tenant:
        """The tenant that a request belongs to.

        Args:
            authorization: Values of all ``Authorization`` headers. More than one is refused, since a proxy in front may
                have checked another one.

        Raises:
            ApiError: 401.
        """
        if self.is_open:
            return self._tenant(DEFAULT_TENANT)
        key = None
        if len(authorization) == 1:
            scheme, _, given = authorization[0].partition(" ")
            if scheme.lower() == "bearer":
                key = find_key(given.strip(), self._own_keys + self._access.keys)
        if key is None:
            raise ApiError(
                401,
                "missing, wrong or expired API key; send one as 'Authorization: Bearer <key>', once",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        structlog.contextvars.bind_contextvars(key_id=key.key_id)
        return self._tenant(key.tenant)

    def cache_salt(self, tenant: Tenant, client_salt: str | None = None) -> str:
        """Salt of the language model's prefix cache.

        It is a keyed digest of the tenant's name, so no tenant can hit another one's entries or detect them by timing.
        A client can separate its own users by ``client_salt``, but cannot choose the resulting salt.
        """
        message = f"{tenant.name}\n{client_salt or ''}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._salt_key, message, hashlib.sha256).hex()

    async def watch(self, metrics: Metrics) -> None:
        """Reloads the access file whenever it changes, until cancelled."""
        metrics.access_file_current.set(1)
        while self._file is not None:
            await asyncio.sleep(files.WATCH_SECONDS)
            if await self._file.has_changed():
                self._replace(self._file, metrics)

    def _replace(self, file: WatchedFile, metrics: Metrics) -> None:
        try:
            self._access = self._parse(file)
        except Exception as error:  # the watch must go on whatever fails
            metrics.access_reloads.labels(outcome="refused").inc()
            metrics.access_file_current.set(0)
            log.error(
                "access file refused, the former one stays in force", file=str(file.path), problem=_safe_message(error)
            )
            return
        metrics.access_reloads.labels(outcome="loaded").inc()
        metrics.access_file_current.set(1)
        log.warning("access file loaded", tenants=len(self._access.tenants), keys=len(self._access.keys))

    def _parse(self, file: WatchedFile) -> Access:
        try:
            contents = file.contents()
        except OSError as error:
            raise AccessFileError(str(error)) from None
        access = parse_access(contents, self._settings)
        if problem := contradiction_of(access.tenants.values(), self._models()):
            raise AccessFileError(problem)
        return access

    def _tenant(self, name: str) -> Tenant:
        return self._access.tenants.get(name) or Tenant(name, self._settings)


def _safe_message(error: Exception) -> str:
    """The message of our own errors; only the type of others, whose messages may quote the file."""
    return str(error) if isinstance(error, AccessFileError) else type(error).__name__
