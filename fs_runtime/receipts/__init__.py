"""Receipts: a certificate with all that is needed to check it later (docs/receipts.md)."""

from fs_runtime.receipts.document import Receipt, ReceiptError, parse_receipt
from fs_runtime.receipts.signing import ReceiptKeyError, SigningKey, read_public_key, read_signing_key

__all__ = [
    "Receipt",
    "ReceiptError",
    "ReceiptKeyError",
    "SigningKey",
    "parse_receipt",
    "read_public_key",
    "read_signing_key",
]
