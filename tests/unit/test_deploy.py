"""The container files agree with the code: names of settings, ports, flags."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings
from tests.integration.vllm_process import EMBEDDINGS_ONLY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    contents: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return contents


def test_every_fs_variable_is_a_setting(compose: dict[str, Any]) -> None:
    names = set(compose["services"]["gateway"]["environment"])
    names |= set(re.findall(r"\bFS_[A-Z_]+(?==)", (ROOT / "Dockerfile").read_text()))
    assert {"FS_MODEL", "FS_HOST", "FS_PORT"} <= names
    assert {name.removeprefix("FS_").lower() for name in names} <= Settings.model_fields.keys()


def test_vllm_takes_embeddings_only_as_in_the_tests(compose: dict[str, Any]) -> None:
    command = compose["services"]["vllm"]["command"]
    flags = dict(argument.split("=", 1) for argument in command if "=" in argument)
    tested = dict(zip(EMBEDDINGS_ONLY[1::2], EMBEDDINGS_ONLY[2::2], strict=True))
    assert EMBEDDINGS_ONLY[0] in command
    assert json.loads(flags["--limit-mm-per-prompt"]) == json.loads(tested["--limit-mm-per-prompt"])


def test_vllm_is_reached_by_the_gateway_alone(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert "ports" not in services["vllm"]
    assert services["gateway"]["environment"]["FS_VLLM_URL"] == "http://vllm:8000"
    assert compose["networks"]["internal"]["internal"] is True
    assert "internal" in services["gateway"]["networks"]
    assert services["gateway"]["depends_on"]["vllm"]["condition"] == "service_healthy"


def test_published_ports_are_local_unless_the_operator_says_otherwise(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert ":-127.0.0.1:" in port


def test_prometheus_scrapes_what_is_there(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    for job in config["scrape_configs"]:
        host, port = job["static_configs"][0]["targets"][0].split(":")
        assert host in compose["services"]
        assert port == "8000"


def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists()


def test_gateway_alone_writes_its_cache_and_only_that(compose: dict[str, Any]) -> None:
    services = compose["services"]
    (volume,) = services["gateway"]["volumes"]
    name, folder = volume.split(":")
    users = [
        service for service, entry in services.items() for v in entry.get("volumes", []) if v.startswith(f"{name}:")
    ]
    assert users == ["gateway"]
    assert services["gateway"]["read_only"] is True
    # A new volume takes its owner from the folder of the image that it is mounted on.
    made = re.search(r"install --directory --owner fs-serve (?:.*\\\n)*.*", (ROOT / "Dockerfile").read_text())
    assert made is not None
    assert folder in made.group().split()


def test_image_is_not_root_and_checks_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    assert "/livez" in text
    assert "ARG BASE_IMAGE" in text


def test_torch_of_the_image_is_the_one_that_is_tested() -> None:
    wanted = re.search(r"^ARG TORCH=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert wanted is not None
    assert wanted.group(1) in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_container_has_the_time_to_stop_that_the_gateway_takes(compose: dict[str, Any]) -> None:
    settings = Settings()
    grace = float(compose["services"]["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.drain_lead + settings.drain_timeout + 10
