import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fs_runtime.receipts import Receipt, ReceiptError, parse_receipt
from tests.unit.fs_runtime.receipts.conftest import DOCUMENT

LARGEST = 2**53 - 1  # up to here every whole number is exact in JSON
NUMBERS = st.floats(-LARGEST, LARGEST) | st.integers(-LARGEST, LARGEST)
NAMES = st.text(max_size=5)
LEAVES = st.none() | st.booleans() | NUMBERS | NAMES
CERTIFICATES = st.dictionaries(
    NAMES, LEAVES | st.lists(LEAVES, max_size=3) | st.dictionaries(NAMES, LEAVES, max_size=3), max_size=4
)


def changed(path: str, value: Any) -> str:
    """The document as JSON with one field set, or taken out for ``...``."""
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path.split(".")
    part: dict[str, Any] = document
    for name in parents:
        part = part[name]
    part[last] = value
    if value is ...:
        del part[last]
    return json.dumps(document)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reordered(value[name]) for name in reversed(value)}
    return [reordered(inner) for inner in value] if isinstance(value, list) else value


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CERTIFICATES)
def test_the_way_it_is_written_does_not_matter_and_no_number_changes(certificate: dict[str, Any]) -> None:
    receipt = Receipt.model_validate({**DOCUMENT, "certificate": certificate})
    for text in (
        receipt.to_json(),
        json.dumps(reordered(receipt.model_dump()), ensure_ascii=True, separators=(",", ":")),
        receipt.signed_bytes().decode()[:-1] + ',"signature":null}',
    ):
        read = parse_receipt(text)
        assert read.signed_bytes() == receipt.signed_bytes()
        assert read.certificate == certificate


def test_canonical_bytes_are_those_of_rfc_8785(receipt: Receipt) -> None:
    text = receipt.signed_bytes().decode()
    assert text.startswith('{"arithmetic":{"batch_size":32,"device":"cpu"')
    assert '"request_id":"req-ü"' in text
    assert (
        '"query":{"curve":false,"min_similarity":null,"radius":1e-7,"space":"model"}' in text
    )  # ECMAScript's spelling of 1e-07
    assert '"norm":{"lower":0.30000000000000004}' in text
    assert "signature" not in text


@pytest.mark.parametrize(("name", "value"), [("compiled", "reduce-overhead"), ("quantization", "fp8")])
def test_how_networks_were_computed_is_signed_where_it_is_not_the_ordinary_way(name: str, value: str) -> None:
    ordinary = parse_receipt(json.dumps(DOCUMENT))
    assert name not in json.loads(ordinary.to_json())["arithmetic"]
    assert parse_receipt(changed(f"arithmetic.{name}", None)).signed_bytes() == ordinary.signed_bytes()
    read = parse_receipt(changed(f"arithmetic.{name}", value))
    assert f'"{name}":"{value}"' in read.signed_bytes().decode()
    assert parse_receipt(read.to_json()) == read


def test_a_spread_of_fewer_samples_is_signed_and_that_of_all_is_not_named() -> None:
    ordinary = parse_receipt(json.dumps(DOCUMENT))
    assert "spread_samples" not in json.loads(ordinary.to_json())["draws"]
    document = copy.deepcopy(DOCUMENT)
    document["draws"] |= {"spectral": True, "spread_samples": 7}
    read = parse_receipt(json.dumps(document))
    assert '"spread_samples":7' in read.signed_bytes().decode()
    for wrong in ({"spread_samples": 15}, {"spread_samples": -1}, {"spectral": False}):  # of 16 samples
        with pytest.raises(ReceiptError, match="spread_samples"):
            parse_receipt(json.dumps(document | {"draws": document["draws"] | wrong}))


def test_what_could_end_the_sampling_early_is_signed_and_its_absence_is_not_named() -> None:
    ordinary = parse_receipt(json.dumps(DOCUMENT))
    assert "until" not in json.loads(ordinary.to_json())["draws"]
    assert parse_receipt(changed("draws.until", None)).signed_bytes() == ordinary.signed_bytes()
    until = {"radius": 0.5, "space": "client", "min_similarity": 0.75}
    read = parse_receipt(changed("draws.until", until))
    assert '"until":{"min_similarity":0.75,"radius":0.5,"space":"client"}' in read.signed_bytes().decode()
    assert parse_receipt(read.to_json()) == read
    for wrong in ({"min_similarity": 0.0}, {"min_similarity": None}, {"radius": -1.0}, {"space": "both"}, {"more": 1}):
        with pytest.raises(ReceiptError, match=r"draws\.until"):
            parse_receipt(changed("draws.until", until | wrong))
    document = copy.deepcopy(DOCUMENT)
    document["draws"] |= {"sigma": 0.0, "until": until}
    with pytest.raises(ReceiptError, match="without noise"):
        parse_receipt(json.dumps(document))


def test_a_program_that_knows_only_doubles_may_pass_it_on(receipt: Receipt) -> None:
    # JavaScript writes 1.0 as 1 and would round an integer seed of 64 bits.
    document = json.loads(changed("certificate.whole", 1.0), parse_int=float)
    document["version"] = 1
    document["image"].update(height=70, width=90)
    document["arithmetic"].update(batch_size=32)
    document["draws"].update(samples=16, max_samples=16, planned=16)
    read = parse_receipt(json.dumps(document))
    assert read.draws.seed == str(2**64 - 1)
    assert read.signed_bytes() == parse_receipt(changed("certificate.whole", 1)).signed_bytes()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "valid JSON"),
        ("[" * 100_000, "valid JSON"),
        ("[]", "not a receipt"),
        ('{"object": "certificate"}', "not a receipt"),
        (changed("version", 2), "update fs-serve"),
        (json.dumps(DOCUMENT)[:-1] + ', "created": "2026-02-03T04:05:06Z"}', "twice"),
        (changed("draws.sigma", float("nan")), "NaN"),
        (changed("draws.sigma", 12345).replace("12345", "1e999"), "draws.sigma"),
        (changed("certificate.norm", 12345).replace("12345", "1e999"), "document"),
        (changed("certificate.norm", 2**53), "document"),
        (changed("certificate.name", "\ud800"), "document"),
        (changed("draws.seed", 7), "draws.seed"),
        (changed("draws.seed", str(2**64)), "seed must be below"),
        (changed("draws.seed", "-1"), "draws.seed"),
        (changed("draws.samples", 17), "max_samples"),
        (changed("draws.samples", "16"), "draws.samples"),
        (changed("draws.confidence", 1.0), "draws.confidence"),
        (changed("created", "yesterday"), "created"),
        (changed("image.digest", "sha256:0"), "image.digest"),
        (changed("arithmetic.dtype", "float64"), "arithmetic.dtype"),
        (changed("arithmetic.device", "mps"), "arithmetic.device"),
        (changed("note", "hello"), "note"),
        (changed("image.note", "hello"), "image.note"),
        (changed("certificate", ...), "certificate"),
        (changed("fingerprints.mapper", ...), "fingerprints.mapper"),
        (changed("signature", "AA=="), "together"),
    ],
)
def test_what_is_no_receipt_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(ReceiptError, match=word):
        parse_receipt(text)
