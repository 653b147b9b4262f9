import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from server.access.keys import digest_of, find_key
from server.access.tenants import parse_access
from server.cli.api_key import api_key
from server.settings.request import RequestSettings

RUN = CliRunner()


def test_a_new_key_and_its_line_let_the_tenant_in() -> None:
    done = RUN.invoke(api_key, ["new", "--tenant", "acme", "--name", 'a "name": #1', "--expires", "2100-01-01"])
    assert done.exit_code == 0
    key, line = done.stdout.splitlines()
    text = f"tenants:\n  acme:\n    keys:\n{line}\n"
    found = find_key(key, parse_access(text.encode(), RequestSettings()).keys)
    assert found is not None
    assert found.tenant == "acme"
    assert found.expires is not None
    assert found.expires.isoformat() == "2100-01-01T00:00:00+00:00"
    assert key not in line
    assert yaml.safe_load(text)["tenants"]["acme"]["keys"][0]["name"] == 'a "name": #1'


def test_a_key_that_has_ended_already_is_not_made() -> None:
    done = RUN.invoke(api_key, ["new", "--tenant", "acme", "--expires", "2020-01-01"])
    assert done.exit_code == 2
    assert "in the past" in done.output


def test_json_for_programs() -> None:
    made = json.loads(RUN.invoke(api_key, ["new", "--tenant", "acme", "--json"]).stdout)
    assert made["tenant"] == "acme"
    assert made["entry"] == {"sha256": digest_of(made["key"]).hex()}


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "x" * 65, "a\n"])
def test_names_that_no_tenant_may_have(name: str) -> None:
    assert RUN.invoke(api_key, ["new", f"--tenant={name}"]).exit_code == 2


def test_the_digest_of_a_key_that_is_there_already() -> None:
    key = "k" * 32
    line = RUN.invoke(api_key, ["hash"], input=f"{key}\n").stdout
    assert digest_of(key).hex() in line
    assert RUN.invoke(api_key, ["hash"], input="password\n").exit_code == 2


def test_files_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "access.yaml"
    entries = [{"sha256": digest_of("a").hex()}, {"sha256": digest_of("b").hex(), "expires": "2020-01-01"}]
    file.write_text(yaml.safe_dump({"tenants": {"acme": {"keys": entries}}}))
    assert RUN.invoke(api_key, ["check", str(file)]).stdout == "acme: 1 of 2 keys valid\n"
    file.write_text("tenants: []")
    done = RUN.invoke(api_key, ["check", str(file)])
    assert done.exit_code == 1
    assert "tenants" in done.stderr
