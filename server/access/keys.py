"""API keys: generation, storage as digests, and comparison.

A key carries 256 random bits, so its plain SHA-256 can neither be inverted nor guessed: salts and slow hashes protect
passwords, which people choose, and would only make every request slower here.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

PREFIX = "fs-"  # lets scanners of source code find leaked keys
_DIGEST_PREFIX = "sha256:"


@dataclass(frozen=True, slots=True)
class StoredKey:
    """The stored digest of a key.

    Attributes:
        digest: SHA-256 of the key.
        tenant: Name of the tenant it belongs to.
        expires: Time from which it is refused; None for never.
    """

    digest: bytes
    tenant: str
    expires: datetime | None = None

    @property
    def key_id(self) -> str:
        """Identifies the key in logs: the first eight hex digits of its digest, which do not reveal the key."""
        return self.digest.hex()[:8]


def new_key() -> str:
    """A fresh key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyFormatError(ValueError):
    """An entry of ``api_keys`` is invalid; the message does not quote it."""


def parse_key_entry(text: str) -> bytes:
    """Returns the digest of an entry of ``api_keys``, which is ``sha256:<64 hex digits>`` or a key in clear.

    Raises:
        KeyFormatError: It begins with ``sha256:`` but is not a digest.
    """
    if text.startswith(_DIGEST_PREFIX):
        try:
            digest = bytes.fromhex(text.removeprefix(_DIGEST_PREFIX))
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise KeyFormatError("an entry that begins with sha256: must continue with 64 hex digits")
        return digest
    return digest_of(text)


def find_key(given: str, keys: tuple[StoredKey, ...], now: datetime | None = None) -> StoredKey | None:
    """Finds the stored key that matches ``given``, unless it has expired.

    It always compares all digests, each in constant time, so that timing reveals nothing about the key, its length or
    its position.
    """
    digest = digest_of(given)
    found = None
    for key in keys:
        if hmac.compare_digest(digest, key.digest):
            found = key
    if found is None or (found.expires is not None and found.expires <= (now or datetime.now(UTC))):
        return None
    return found
