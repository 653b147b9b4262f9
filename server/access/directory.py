"""The keys and tenants in force, and the watch over the file that they come from."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
from pathlib import Path

import structlog

from server.access.keys import StoredKey, find_key, stored_form
from server.access.tenants import DEFAULT_TENANT, Access, AccessFileError, Tenant, parse_access
from server.errors import ApiError
from server.metrics import Metrics
from server.settings import Settings

log = structlog.get_logger("server.access")

WATCH_SECONDS = 1.0


class AccessDirectory:
    """Who may use the gateway now.

    A new version of the access file replaces the old one as a whole. One that cannot be used changes nothing: the old
    one stays in force, and log and metrics say so until it is mended.

    Args:
        settings: Keys of the environment, the access file, and the settings of tenants without their own.
        metrics: Counts reloads.

    Raises:
        AccessFileError: The file cannot be used at start.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._path: Path | None = settings.access_file
        self._salt_key = (
            settings.cache_salt_key.get_secret_value().encode() if settings.cache_salt_key else secrets.token_bytes(32)
        )
        self._own_keys = tuple(
            StoredKey(stored_form(key.get_secret_value()), DEFAULT_TENANT) for key in settings.api_keys
        )
        self._seen = self._contents()
        self._access = Access({}, ()) if self._path is None else self._parse(*self._seen)
        metrics.access_file_current.set(1)

    @property
    def is_open(self) -> bool:
        """Whether everyone is let in, since the operator has set neither keys nor a file."""
        return not self._own_keys and self._path is None

    def authenticate(self, authorization: list[str]) -> Tenant:
        """The tenant that a request belongs to.

        Args:
            authorization: Values of all ``Authorization`` headers. Two of them are refused: a proxy in front could
                have judged the other one.

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

    def cache_salt(self, tenant: Tenant, wish: str | None = None) -> str:
        """Salt of the language model's prefix cache.

        A keyed digest of the tenant's name, so that no tenant can hit, or time, what another one has cached. A client
        may part its own users by a wish; it cannot choose the salt.
        """
        message = f"{tenant.name}\n{wish or ''}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._salt_key, message, hashlib.sha256).hex()

    async def watch(self) -> None:
        """Takes over changes of the access file, until it is cancelled.

        The contents are compared, not the time of change: it works alike on every file system, and for files that are
        links swapped by an orchestrator.
        """
        while self._path is not None:
            await asyncio.sleep(WATCH_SECONDS)
            found = await asyncio.to_thread(self._contents)
            if found != self._seen:
                self._seen = found
                self._replace(*found)

    def _replace(self, contents: bytes, problem: str | None) -> None:
        try:
            self._access = self._parse(contents, problem)
        except Exception as error:  # whatever it is, the watch goes on
            self._metrics.access_reloads.labels(outcome="refused").inc()
            self._metrics.access_file_current.set(0)
            log.error("access file refused, the former one stays in force", file=str(self._path), problem=_words(error))
            return
        self._metrics.access_reloads.labels(outcome="loaded").inc()
        self._metrics.access_file_current.set(1)
        log.warning("access file loaded", tenants=len(self._access.tenants), keys=len(self._access.keys))

    def _parse(self, contents: bytes, problem: str | None) -> Access:
        if problem is not None:
            raise AccessFileError(problem)
        return parse_access(contents, self._settings)

    def _contents(self) -> tuple[bytes, str | None]:
        """What the file holds, and what is wrong with reading it."""
        try:
            return self._path.read_bytes() if self._path else b"", None
        except OSError as error:
            return b"", f"{self._path} cannot be read: {error.strerror}"

    def _tenant(self, name: str) -> Tenant:
        return self._access.tenants.get(name) or Tenant(name, self._settings)


def _words(error: Exception) -> str:
    """Ours say what is wrong; those of others might repeat what the file holds."""
    return str(error) if isinstance(error, AccessFileError) else type(error).__name__
