import asyncio
import contextlib
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.access.directory import AccessDirectory
from server.access.keys import digest_of
from server.errors import ApiError
from server.observability.metrics import Metrics
from server.settings import files as watched_file
from server.settings.gateway import Settings


def file_of(**keys: str) -> str:
    lines = [f"  {tenant}: {{keys: [{{sha256: {digest_of(key).hex()}}}]}}" for tenant, key in keys.items()]
    return "\n".join(["tenants:", *lines])


@pytest.fixture(autouse=True)
def _watch_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "WATCH_SECONDS", 0.01)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def lets_in(access: AccessDirectory, key: str) -> str | None:
    with contextlib.suppress(ApiError):
        return access.authenticate([f"Bearer {key}"]).name
    return None


def test_without_keys_everyone_is_the_default_tenant() -> None:
    access = AccessDirectory(Settings())
    assert access.is_open
    assert access.authenticate([]).name == access.authenticate(["nonsense", "twice"]).name == "default"


def test_keys_of_the_environment_belong_to_the_default_tenant(tmp_path: Path) -> None:
    file = tmp_path / "access.yaml"
    file.write_text(file_of(acme="one") + "\n  default: {samples_per_minute: 5}")
    access = AccessDirectory(Settings(api_keys=["env-key"], access_file=file))
    assert lets_in(access, "one") == "acme"
    assert lets_in(access, "env-key") == "default"
    assert access.authenticate(["Bearer env-key"]).settings.samples_per_minute == 5


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [""],
        ["one"],
        ["Bearer"],
        ["Bearer "],
        ["Basic one"],
        ["Bearer one two"],
        ["Bearer one,"],
        ["Bearer one", "Bearer one"],  # two headers: which one did the proxy in front read?
        ["Bearer one", "Bearer two"],
        ["Bearer \xff\xfe"],
    ],
)
def test_headers_that_let_nobody_in(headers: list[str]) -> None:
    access = AccessDirectory(Settings(api_keys=["one"]))
    with pytest.raises(ApiError) as caught:
        access.authenticate(headers)
    assert caught.value.status == 401
    assert caught.value.headers["www-authenticate"] == "Bearer"


def test_a_file_without_valid_keys_lets_nobody_in(tmp_path: Path) -> None:
    file = tmp_path / "access.yaml"
    file.write_text("tenants: {acme: {}}")
    assert not AccessDirectory(Settings(access_file=file)).is_open
    assert lets_in(AccessDirectory(Settings(access_file=file)), "one") is None


async def test_changes_take_effect_and_broken_ones_do_not(tmp_path: Path) -> None:
    file = tmp_path / "access.yaml"
    file.write_text(file_of(acme="old"))
    metrics = Metrics()
    access = AccessDirectory(Settings(access_file=file))
    watch = asyncio.create_task(access.watch(metrics))

    async def until(name: str, wanted: float, **labels: str) -> None:
        async with asyncio.timeout(10):
            while value(metrics, name, **labels) != wanted:  # noqa: ASYNC110 (metrics have no events)
                await asyncio.sleep(0.005)

    try:
        file.write_text(file_of(acme="old", beta="new"))
        await until("fs_access_reloads_total", 1, outcome="loaded")
        assert (lets_in(access, "old"), lets_in(access, "new")) == ("acme", "beta")

        with capture_logs() as logs:
            file.write_text("tenants: {acme: {keys: [fs-clear")
            await until("fs_access_reloads_total", 1, outcome="refused")
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert "fs-clear" not in str(logs)
        assert value(metrics, "fs_access_file_current") == 0
        assert (lets_in(access, "old"), lets_in(access, "new")) == ("acme", "beta")

        file.unlink()
        await until("fs_access_reloads_total", 2, outcome="refused")
        assert lets_in(access, "new") == "beta"

        file.write_text(file_of(beta="new"))
        await until("fs_access_reloads_total", 2, outcome="loaded")
        assert value(metrics, "fs_access_file_current") == 1
        assert (lets_in(access, "old"), lets_in(access, "new")) == (None, "beta")
    finally:
        watch.cancel()


def test_salts_part_tenants_and_the_users_of_one() -> None:
    access = AccessDirectory(Settings(cache_salt_key="k"))
    same = AccessDirectory(Settings(cache_salt_key="k"))
    other = AccessDirectory(Settings())
    tenant = access.authenticate([])
    assert access.cache_salt(tenant) == same.cache_salt(tenant) != other.cache_salt(tenant)
    one, two = access.cache_salt(tenant, "user-1"), access.cache_salt(tenant, "user-2")
    assert len({access.cache_salt(tenant), one, two}) == 3
    assert "user-1" not in one
