import hashlib
import hmac
from datetime import UTC, datetime, timedelta

import pytest

from server.access import keys
from server.access.keys import PREFIX, StoredKey, digest_of, find_key, new_key, parse_key_entry

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def stored(key: str, tenant: str = "acme", expires: datetime | None = None) -> StoredKey:
    return StoredKey(digest_of(key), tenant, expires)


def test_keys_are_random_and_long_enough_that_a_fast_hash_will_do() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        assert key.startswith(PREFIX)
        assert len(key.removeprefix(PREFIX)) == 43  # 256 bits in base64


def test_the_digest_is_plain_sha256_so_that_any_tool_can_make_it() -> None:
    assert digest_of("fs-x") == hashlib.sha256(b"fs-x").digest()


def test_the_right_key_is_found_and_no_other() -> None:
    known = (stored("one", "a"), stored("two", "b"), stored("three", "b"))
    found = find_key("two", known)
    assert found is not None
    assert found.tenant == "b"
    for wrong in ("", "on", "one ", "One", "four", "ö", "\udc80", known[0].digest.hex()):
        assert find_key(wrong, known) is None


def test_every_digest_is_compared_whichever_one_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    known = tuple(stored(str(number)) for number in range(5))
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def counting(given: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(given, other)

    monkeypatch.setattr(keys.hmac, "compare_digest", counting)
    for given in ("0", "4", "none"):
        compared.clear()
        find_key(given, known)
        assert compared == [key.digest for key in known]


def test_keys_expire() -> None:
    key = stored("one", expires=NOW)
    assert find_key("one", (key,), NOW - timedelta(seconds=1)) is key
    assert find_key("one", (key,), NOW) is None


def test_keys_of_the_environment_may_be_given_as_digests() -> None:
    digest = digest_of("secret")
    assert parse_key_entry("secret") == parse_key_entry(f"sha256:{digest.hex()}") == digest
    for wrong in ("sha256:", "sha256:12", f"sha256:{'z' * 64}"):
        with pytest.raises(ValueError, match="64 hex digits"):
            parse_key_entry(wrong)


def test_nothing_shown_of_a_key_holds_it() -> None:
    key = stored("a-secret-key")
    assert "a-secret-key" not in repr(key)
    assert key.key_id == digest_of("a-secret-key").hex()[:8]
