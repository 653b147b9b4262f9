"""What others can do with names and values that are sealed: nothing but take them away."""

import pytest

from fs_runtime.engine.cache.seal import ForgedError, Seal

SEAL = Seal("a" * 32)
NAME = SEAL.name("tenant", "image")


def test_opens_what_it_closed() -> None:
    sealed = SEAL.close(NAME, "image", b"value")
    assert Seal("a" * 32).open(NAME, "image", sealed) == b"value"
    assert b"value" not in sealed
    assert SEAL.close(NAME, "image", b"value") != sealed


def test_every_changed_byte_is_found() -> None:
    sealed = SEAL.close(NAME, "image", b"value")
    for place in range(len(sealed)):
        changed = bytearray(sealed)
        changed[place] ^= 1
        with pytest.raises(ForgedError):
            SEAL.open(NAME, "image", bytes(changed))


@pytest.mark.parametrize("sealed", [b"", b"short", b"\0" * 12, b"\0" * 28, b"\0" * 1000])
def test_nonsense_is_refused(sealed: bytes) -> None:
    with pytest.raises(ForgedError):
        SEAL.open(NAME, "image", sealed)


def test_a_value_is_good_under_its_name_for_its_purpose_with_its_secret_only() -> None:
    sealed = SEAL.close(NAME, "image", b"value")
    for seal, name, purpose in (
        (SEAL, SEAL.name("tenant", "other"), "image"),
        (SEAL, NAME, "claim"),
        (Seal("b" * 32), NAME, "image"),
    ):
        with pytest.raises(ForgedError):
            seal.open(name, purpose, sealed)


def test_names_depend_on_every_part_and_where_it_ends() -> None:
    names = [SEAL.name(*parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("ab", "d"))]
    assert len(set(names)) == len(names)
    assert Seal("b" * 32).name("abc") != SEAL.name("abc")
    assert all(len(name) == 64 for name in names)


def test_short_secrets_are_refused_and_none_is_shown() -> None:
    with pytest.raises(ValueError, match="32 characters"):
        Seal("short")
    assert "a" * 8 not in repr(SEAL)
