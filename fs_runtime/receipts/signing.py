"""Ed25519 signatures of receipts: keys from PEM files, signing, checking (RFC 8032)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from fs_runtime.receipts.document import Receipt, ReceiptSigner

_HOW_TO_MAKE = "make one with `fs-serve keygen FILE` or `openssl genpkey -algorithm ed25519 -out FILE`"


class ReceiptKeyError(ValueError):
    """A key that cannot be used, with the reason and the remedy; never with a part of the key."""


class SignatureError(ValueError):
    """A signature that does not hold, with the reason."""


def key_id(public_key: bytes) -> str:
    """SHA-256 of a raw public key, as ``sha256:<hex>``."""
    return f"sha256:{hashlib.sha256(public_key).hexdigest()}"


class SigningKey:
    """A private key that signs receipts. Its ``repr`` shows the public part only.

    Attributes:
        public_key: Raw, 32 bytes.
        key_id: Digest of it.
    """

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public_key = private_key.public_key().public_bytes_raw()
        self.key_id = key_id(self.public_key)

    def __repr__(self) -> str:
        return f"SigningKey({self.key_id})"

    def sign(self, receipt: Receipt) -> Receipt:
        """The receipt with this key as its signer, and signed."""
        signer = ReceiptSigner(key_id=self.key_id, public_key=base64.b64encode(self.public_key).decode())
        named = receipt.model_copy(update={"signer": signer, "signature": None})
        signature = self._private_key.sign(named.signed_bytes())
        return named.model_copy(update={"signature": base64.b64encode(signature).decode()})

    def public_pem(self) -> str:
        """The public key in PEM, for those who verify."""
        key = Ed25519PublicKey.from_public_bytes(self.public_key)
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def read_signing_key(path: Path) -> SigningKey:
    """Reads an unencrypted Ed25519 private key from a PEM file.

    Raises:
        ReceiptKeyError: The file cannot be read or holds something else.
    """
    contents = _contents(path)
    try:
        key = load_pem_private_key(contents, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it wants a password
        raise ReceiptKeyError(f"{path} holds no unencrypted private key in PEM; {_HOW_TO_MAKE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ReceiptKeyError(f"{path} holds a private key that is not Ed25519; {_HOW_TO_MAKE}")
    return SigningKey(key)


def read_public_key(path: Path) -> bytes:
    """Reads an Ed25519 public key from a PEM file, as 32 raw bytes.

    Raises:
        ReceiptKeyError: The file cannot be read or holds something else.
    """
    remedy = "fetch it from the server's /v1/receipt-key, field pem"
    contents = _contents(path)
    try:
        key = load_pem_public_key(contents)
    except (ValueError, UnsupportedAlgorithm):
        raise ReceiptKeyError(f"{path} holds no public key in PEM; {remedy}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ReceiptKeyError(f"{path} holds a public key that is not Ed25519; {remedy}")
    return key.public_bytes_raw()


def write_new_key(path: Path) -> SigningKey:
    """Makes a key and writes it to a new PEM file that its owner alone may read.

    Raises:
        ReceiptKeyError: The file exists already, or cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    except FileExistsError:
        raise ReceiptKeyError(f"{path} exists already, and a key that is gone is gone; choose another file") from None
    except OSError as error:
        raise ReceiptKeyError(f"{path} cannot be written: {error.strerror}") from None
    return SigningKey(key)


def check_signature(receipt: Receipt, trusted: bytes | None = None) -> str | None:
    """Checks the signature, if there is one.

    Args:
        receipt: Signed or not.
        trusted: The raw public key that it must be signed with; None takes the one that the receipt brings. That
            shows that nobody without that key has changed the receipt since, but not whose key it is.

    Returns:
        The id of the key; None for an unsigned receipt.

    Raises:
        SignatureError: The signature does not hold, is of another key than ``trusted``, or there is none although a
            key is trusted.
    """
    if receipt.signer is None or receipt.signature is None:
        if trusted is not None:
            raise SignatureError(f"the receipt is unsigned; a signature of key {key_id(trusted)} is wanted")
        return None
    brought = _decode(receipt.signer.public_key, "public_key")
    if key_id(brought) != receipt.signer.key_id:
        raise SignatureError("the receipt's key_id is not that of its public_key")
    if trusted is not None and brought != trusted:
        raise SignatureError(
            f"the receipt is signed by another key: {receipt.signer.key_id} instead of {key_id(trusted)}"
        )
    try:
        key = Ed25519PublicKey.from_public_bytes(brought)
        key.verify(_decode(receipt.signature, "signature"), receipt.signed_bytes())
    except (ValueError, InvalidSignature):  # ValueError: no 32 bytes
        raise SignatureError("the signature does not fit the receipt: it was changed after it was signed") from None
    return receipt.signer.key_id


def _decode(text: str, field: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureError(f"the receipt's {field} is not base64") from None


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReceiptKeyError(f"{path} cannot be read: {error.strerror}") from None
