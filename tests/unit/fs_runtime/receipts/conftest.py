"""A receipt as a document, without a model behind it."""

from pathlib import Path

import pytest

from fs_runtime.receipts import Receipt, SigningKey, parse_receipt
from fs_runtime.receipts.signing import write_new_key

DIGEST = f"sha256:{'0123456789abcdef' * 4}"
DOCUMENT = {
    "object": "receipt",
    "version": 1,
    "created": "2026-02-03T04:05:06Z",
    "request_id": "req-ü",
    "image": {"digest": DIGEST, "height": 70, "width": 90},
    "preprocessing": {"spectral_norm": 0.1, "steps": {"resize": 56}},
    "draws": {
        "sigma": 0.05,
        "seed": "18446744073709551615",
        "samples": 16,
        "max_samples": 16,
        "planned": 16,
        "confidence": 0.999,
        "granularity": "image",
        "stage": "encoder",
        "centred": False,
        "spectral": False,
        "token_map": False,
    },
    "query": {"radius": 1e-7, "space": "model", "min_similarity": None, "curve": False},
    "arithmetic": {"device": "cpu", "device_name": "AVX2", "dtype": "float32", "batch_size": 32},
    "fingerprints": {"model": DIGEST, "purifier": None, "mapper": None, "centre": None},
    "versions": {"torch": "2.9"},
    "certificate": {"samples": 16, "ended": "samples", "norm": {"lower": 0.1 + 0.2}},
    "signer": None,
    "signature": None,
}


@pytest.fixture
def receipt() -> Receipt:
    """Unsigned."""
    return parse_receipt(Receipt.model_validate(DOCUMENT).to_json())


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return write_new_key(tmp_path_factory.mktemp("keys") / "key.pem")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    write_new_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"
