"""Names and values for a store that others can read and write: they learn nothing from it, and can forge nothing in it.

A secret that the replicas share, and nobody else has, is behind both. Names are keyed digests, so that neither tenants
nor pictures can be recognised in them. Values are encrypted and authenticated with AES-256-GCM (NIST SP 800-38D) under
a key of their name, so that a value cannot be altered, made up, or moved to another name. Whoever can write the store
can still take values away, and put back what once stood under the same name.
"""

from __future__ import annotations

import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MIN_SECRET_LENGTH = 32
_NONCE_BYTES = 12


class ForgedError(ValueError):
    """A value that was not sealed with this secret for this name and purpose, or was changed since."""


class Seal:
    """Seals and opens values.

    Args:
        secret: At least 32 characters, as hard to guess as a key should be.

    Raises:
        ValueError: It is shorter.
    """

    def __init__(self, secret: str) -> None:
        if len(secret) < MIN_SECRET_LENGTH:
            raise ValueError(f"a secret has at least {MIN_SECRET_LENGTH} characters; make one: openssl rand -hex 32")
        self._secret = secret.encode()

    def __repr__(self) -> str:
        return "Seal(…)"

    def name(self, *parts: str) -> str:
        """A name that tells nothing about what it is made from, in 64 hex digits."""
        return self._digest("name", *parts).hex()

    def close(self, name: str, purpose: str, value: bytes) -> bytes:
        """Encrypts a value that is kept under ``name``."""
        # A key for each name: nonces are random, and must not meet again under one key (at most 2^32 of them).
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self._digest("seal", name)).encrypt(nonce, value, purpose.encode())

    def open(self, name: str, purpose: str, sealed: bytes) -> bytes:
        """The value.

        Raises:
            ForgedError: It was not sealed with this secret, under this name and for this purpose.
        """
        nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return AESGCM(self._digest("seal", name)).decrypt(nonce, rest, purpose.encode())
        except (InvalidTag, ValueError):  # ValueError: too short
            raise ForgedError("the value was not sealed with this secret, or was changed since") from None

    def _digest(self, *parts: str) -> bytes:
        message = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
        return hmac.digest(self._secret, message, "sha256")
