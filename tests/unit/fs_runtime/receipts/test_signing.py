import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
)

from fs_runtime.receipts import (
    Receipt,
    ReceiptKeyError,
    SigningKey,
    parse_receipt,
    read_public_key,
    read_signing_key,
)
from fs_runtime.receipts.signing import SignatureError, check_signature, key_id, write_new_key
from tests.unit.fs_runtime.receipts.conftest import DIGEST

CHANGES: dict[str, Any] = {
    "created": "2027-02-03T04:05:06Z",
    "request_id": None,
    "image": {"digest": DIGEST, "height": 71, "width": 90},
    "preprocessing": {"spectral_norm": 0.1, "steps": {"resize": 57}},
    "draws.sigma": 0.06,
    "draws.seed": "18446744073709551614",
    "query.radius": 2e-7,
    "arithmetic.batch_size": 33,
    "fingerprints.model": DIGEST.replace("0", "1"),
    "versions": {"torch": "2.10"},
    "certificate.norm.lower": 0.3,
    "signer.key_id": DIGEST,
    "signer.public_key": base64.b64encode(bytes(32)).decode(),
    "signature": base64.b64encode(bytes(64)).decode(),
}


def tampered(receipt: Receipt, path: str, value: Any) -> Receipt:
    document = receipt.model_dump(mode="json")
    *parents, last = path.split(".")
    part = document
    for name in parents:
        part = part[name]
    assert part[last] != value
    part[last] = value
    return parse_receipt(json.dumps(document))


def test_signed_and_checked(receipt: Receipt, key: SigningKey) -> None:
    signed = parse_receipt(key.sign(receipt).to_json())
    assert check_signature(signed) == check_signature(signed, key.public_key) == key.key_id == key_id(key.public_key)
    assert check_signature(receipt) is None
    # And with nothing but the documented ingredients: canonical JSON without `signature`, and the key in PEM.
    assert signed.signature is not None
    public = load_pem_public_key(key.public_pem().encode())
    public.verify(base64.b64decode(signed.signature), signed.signed_bytes())  # type: ignore[union-attr, call-arg, arg-type]


def test_every_field_of_the_document_is_among_the_changes(receipt: Receipt) -> None:
    fixed = {"object", "version"}  # any other value is refused by the parser
    assert {path.split(".")[0] for path in CHANGES} | fixed == set(Receipt.model_fields)


@pytest.mark.parametrize(("path", "value"), CHANGES.items())
def test_a_change_breaks_the_signature(receipt: Receipt, key: SigningKey, path: str, value: Any) -> None:
    changed = tampered(key.sign(receipt), path, value)
    for trusted in (None, key.public_key):
        with pytest.raises(SignatureError):
            check_signature(changed, trusted)


def test_a_trusted_key_must_have_signed(receipt: Receipt, key: SigningKey, key_file: Path) -> None:
    with pytest.raises(SignatureError, match="unsigned"):
        check_signature(receipt, key.public_key)
    other = read_signing_key(key_file)
    resigned = other.sign(receipt)
    assert check_signature(resigned) == other.key_id
    with pytest.raises(SignatureError, match="another key"):
        check_signature(resigned, key.public_key)


@pytest.mark.parametrize("text", ["*", "AA==", ""])
@pytest.mark.parametrize("field", ["signature", "signer.public_key"])
def test_signatures_and_keys_that_are_none(receipt: Receipt, key: SigningKey, field: str, text: str) -> None:
    with pytest.raises(SignatureError):
        check_signature(tampered(key.sign(receipt), field, text))


def test_keys_in_files(key_file: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = read_signing_key(key_file)
    public = tmp_path / "public.pem"
    public.write_text(key.public_pem())
    assert read_public_key(public) == key.public_key
    secret = key_file.read_text().splitlines()[1]
    assert secret not in repr(key)
    with pytest.raises(ReceiptKeyError, match="exists already"):
        write_new_key(key_file)
    assert secret in key_file.read_text()
    with pytest.raises(ReceiptKeyError, match="cannot be written"):
        write_new_key(tmp_path / "no" / "folder")


def test_files_that_hold_no_usable_key(tmp_path: Path) -> None:
    def pem(name: str, contents: bytes) -> Path:
        (tmp_path / name).write_bytes(contents)
        return tmp_path / name

    own = Ed25519PrivateKey.generate()
    other = generate_private_key(SECP256R1())
    locked = BestAvailableEncryption(b"password")
    private = [
        (pem("text", b"hello"), "no unencrypted private key"),
        (pem("locked", own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)), "no unencrypted private key"),
        (pem("ec", other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())), "not Ed25519"),
        (tmp_path / "missing", "No such file"),
    ]
    for path, word in private:
        with pytest.raises(ReceiptKeyError, match=word):
            read_signing_key(path)
    public = [
        (pem("text", b"hello"), "no public key"),
        (pem("private", own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())), "no public key"),
        (
            pem("ec-public", other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)),
            "not Ed25519",
        ),
        (tmp_path, "directory"),
    ]
    for path, word in public:
        with pytest.raises(ReceiptKeyError, match=word):
            read_public_key(path)
