"""The container files agree with the code: names of settings, ports, flags."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings.gateway import Settings
from tests.integration.vllm_process import EMBEDDINGS_ONLY

ROOT = Path(__file__).resolve().parents[3]
COMPOSE_FILES = ["docker-compose.yml", "docker-compose.cpu.yml", "deploy/compose/settings.yml"]


class Loader(yaml.SafeLoader):
    """Reads compose's tag !reset, which takes a value of another file away."""


RESET = object()
Loader.add_constructor("!reset", lambda loader, node: RESET)


def load(name: str) -> dict[str, Any]:
    contents: dict[str, Any] = yaml.load((ROOT / name).read_text(), Loader)
    return contents


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load("docker-compose.yml")


@pytest.fixture(scope="module")
def env_example() -> dict[str, str]:
    """What .env.example sets, and what it offers behind a #."""
    lines = re.findall(r"^#?([A-Z][A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines), "a name comes twice"
    return dict(lines)


@pytest.mark.parametrize("name", COMPOSE_FILES)
def test_compose_files_follow_the_specification(name: str, tmp_path: Path) -> None:
    contents = load(name)
    for service in contents["services"].values():
        for key in [key for key, value in service.items() if value is RESET]:
            del service[key]
    file = tmp_path / "compose.yml"
    file.write_text(yaml.safe_dump(contents))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_fs_variable_is_a_setting(compose: dict[str, Any]) -> None:
    names = set(compose["services"]["gateway"]["environment"])
    names |= set(load("docker-compose.cpu.yml")["services"]["gateway"]["environment"])
    names |= set(re.findall(r"\bFS_[A-Z_]+(?==)", (ROOT / "Dockerfile").read_text()))
    assert {"FS_MODEL", "FS_HOST", "FS_PORT"} <= names
    assert {name.removeprefix("FS_").lower() for name in names} <= Settings.model_fields.keys()


def test_settings_and_env_example_are_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "deploy/compose/write_settings.py"))
    for name, text in (("deploy/compose/settings.yml", "settings_file"), (".env.example", "env_example")):
        assert (ROOT / name).read_text() == script[text](), "run deploy/compose/write_settings.py"


def test_every_setting_reaches_the_container_or_is_fixed(compose: dict[str, Any], env_example: dict[str, str]) -> None:
    extended = compose["services"]["gateway"]["extends"]
    passed = load(extended["file"])["services"][extended["service"]]["environment"]
    fixed = set(compose["services"]["gateway"]["environment"])
    image = set(re.findall(r"\b(FS_[A-Z_]+)=", (ROOT / "Dockerfile").read_text()))
    assert not set(passed) & (fixed | image)
    settings = {f"FS_{name.upper()}" for name in Settings.model_fields}
    # vllm_urls does for one server what vllm_url does, and both at once are refused.
    of_settings = {name for name in {*passed, *fixed, *image} if name.startswith("FS_")} - {"FS_CONFIG"}
    assert of_settings == settings - {"FS_VLLM_URL"}
    assert set(passed) <= env_example.keys()


def test_env_example_has_every_knob_with_its_default(env_example: dict[str, str]) -> None:
    used: dict[str, str] = {}
    for name in COMPOSE_FILES:
        for knob, default in re.findall(r"\$\{([A-Z0-9_]+)(?::[-?]([^}]*))?\}", (ROOT / name).read_text()):
            used.setdefault(knob, default)
    services = load("deploy/compose/settings.yml")["services"]
    passed = {name for service in services.values() for name in service["environment"]}
    assert env_example.keys() == {"COMPOSE_PROFILES"} | used.keys() | passed
    empty = {"GRAFANA_PASSWORD", "FS_REVISION"}  # to be filled in; the branch that the hub gives without one
    for knob, default in used.items():
        assert env_example[knob] == ("" if knob in empty else default), knob


def test_what_env_example_offers_is_accepted_and_is_the_default(
    env_example: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Settings()
    for name, value in env_example.items():
        field = name.removeprefix("FS_").lower()
        if field not in Settings.model_fields or not value:  # docker-compose.yml's own; to be filled in
            continue
        with monkeypatch.context() as alone:
            alone.setenv(name, value)
            found = Settings()
        if field not in ("vllm_urls", "gpu_memory_fraction"):  # docker-compose.yml has defaults of its own for them
            assert getattr(found, field) == getattr(usual, field), name


def test_env_itself_is_not_committed() -> None:
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "/secrets/", "/psm/"} <= set(ignored)


def test_without_a_gpu_the_gateway_answers_alone(compose: dict[str, Any]) -> None:
    cpu = load("docker-compose.cpu.yml")["services"]
    assert cpu["gateway"]["environment"] == {
        "FS_MODEL": "reference",
        "FS_LANGUAGE_MODEL": "embedded",
        "FS_GPU_MEMORY_FRACTION": "1",  # less is refused without a GPU
    }
    # A hub with the CPU build must be named; its version is that of the other build.
    torch = re.search(r"^ARG TORCH=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert torch is not None
    assert cpu["gateway"]["build"]["args"]["TORCH"] == f"{torch.group(1)}${{TORCH_INDEX_URL:++cpu}}"
    assert cpu["gateway"]["deploy"] is RESET
    assert cpu["gateway"]["depends_on"] is RESET
    assert cpu["vllm"]["scale"] == 0  # whatever profiles .env names
    (volume,) = cpu["prometheus"]["volumes"]
    source, target = volume.split(":")[:2]
    assert (ROOT / source).exists()
    assert target in {volume.split(":")[1] for volume in compose["services"]["prometheus"]["volumes"]}
    waits = {name for service in cpu for name in compose["services"][service].get("depends_on", {})}
    assert waits <= {"vllm"}


def test_vllm_takes_embeddings_only_as_in_the_tests(compose: dict[str, Any]) -> None:
    command = compose["services"]["vllm"]["command"]
    flags = dict(argument.split("=", 1) for argument in command if "=" in argument)
    tested = dict(zip(EMBEDDINGS_ONLY[1::2], EMBEDDINGS_ONLY[2::2], strict=True))
    assert EMBEDDINGS_ONLY[0] in command
    assert json.loads(flags["--limit-mm-per-prompt"]) == json.loads(tested["--limit-mm-per-prompt"])


def test_gateway_and_vllm_load_the_same_weights_from_the_same_hub(compose: dict[str, Any]) -> None:
    gateway, vllm = compose["services"]["gateway"], compose["services"]["vllm"]
    model, revision, *_ = vllm["command"]
    assert model == gateway["environment"]["FS_MODEL"]
    assert revision == "--revision=${FS_REVISION:-main}"
    settings = load(gateway["extends"]["file"])["services"]
    assert "FS_REVISION" in settings[gateway["extends"]["service"]]["environment"]
    hub = settings[vllm["extends"]["service"]]["environment"]
    assert set(hub) == {"HF_TOKEN", "HF_ENDPOINT", "HTTPS_PROXY", "NO_PROXY"}  # and none of the gateway's secrets
    assert set(hub) <= set(settings[gateway["extends"]["service"]]["environment"])


def test_vllm_is_reached_by_the_gateway_and_prometheus_alone(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert "ports" not in services["vllm"]
    assert services["gateway"]["environment"]["FS_VLLM_URLS"] == "${FS_VLLM_URLS:-http://vllm:8000}"
    assert compose["networks"]["internal"]["internal"] is True
    near = {name for name, entry in services.items() if {*entry["networks"]} & {*services["vllm"]["networks"]}}
    assert near == {"vllm", "gateway", "prometheus"}


def test_the_gateway_waits_for_no_vllm(compose: dict[str, Any], env_example: dict[str, str]) -> None:
    """It may fetch weights for longer than any wait lasts, or be elsewhere; until it is there requests get 503."""
    services = compose["services"]
    assert services["gateway"]["depends_on"] == {"vllm": {"condition": "service_started", "required": False}}
    assert services["vllm"]["profiles"] == [env_example["COMPOSE_PROFILES"]]


def test_gateway_and_vllm_fit_on_one_gpu_together(env_example: dict[str, str]) -> None:
    assert float(env_example["FS_GPU_MEMORY_FRACTION"]) + float(env_example["VLLM_GPU_MEMORY"]) <= 0.95


def test_published_ports_are_local_unless_the_operator_says_otherwise(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for port in service.get("ports", []):
            assert ":-127.0.0.1:" in port


def test_containers_give_up_what_they_do_not_need(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        # The image of the gateway brings its own; nothing waits for Grafana.
        assert name in ("gateway", "grafana") or service["healthcheck"]["test"]
    assert compose["services"]["gateway"]["cap_drop"] == ["ALL"]
    assert compose["services"]["redis"]["profiles"] == ["redis"]
    assert compose["services"]["redis"]["networks"] == ["shared"]
    assert compose["networks"]["shared"]["internal"] is True
    assert [name for name, entry in compose["services"].items() if "shared" in entry["networks"]] == [
        "gateway",
        "redis",
    ]


def test_ports_are_those_that_the_image_listens_on(compose: dict[str, Any]) -> None:
    image = dict(re.findall(r"\b(FS_[A-Z]+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    assert re.search(rf"^EXPOSE {image['FS_PORT']}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    (port,) = compose["services"]["gateway"]["ports"]
    assert port.endswith(f":{image['FS_PORT']}")


def test_prometheus_scrapes_what_is_there(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in config["scrape_configs"]}
    assert targets == {"fs-serve": ["gateway:8000"], "vllm": ["vllm:8000"], "prometheus": ["localhost:9090"]}
    for name in ("gateway", "vllm"):
        assert set(compose["services"][name]["networks"]) & set(compose["services"]["prometheus"]["networks"])


def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (ROOT / source).exists()


def test_gateway_alone_writes_its_volumes_and_only_those(compose: dict[str, Any]) -> None:
    services = compose["services"]
    *volumes, secrets, psm = services["gateway"]["volumes"]
    assert secrets.endswith(":ro")
    assert psm.endswith(":/psm:ro")
    assert services["gateway"]["read_only"] is True
    # A new volume takes its owner from the folder of the image that it is mounted on.
    made = re.search(r"install --directory --owner fs-serve (?:.*\\\n)*.*", (ROOT / "Dockerfile").read_text())
    assert made is not None
    for volume in volumes:
        name, folder = volume.split(":")
        mounts = [(service, each) for service, entry in services.items() for each in entry.get("volumes", [])]
        assert [service for service, each in mounts if each.startswith(f"{name}:")] == ["gateway"]
        assert folder in made.group().split()


def test_image_is_not_root_and_checks_its_health() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)
    assert "/livez" in text
    assert "ARG BASE_IMAGE" in text


def test_a_changed_line_of_code_leaves_the_layer_of_dependencies_as_it_is() -> None:
    dependencies, product, final = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
    sources = re.compile(r"^COPY (fs_runtime|server) ", re.MULTILINE)
    assert sources.findall(dependencies) == []
    assert sources.findall(product) == ["fs_runtime", "server"]
    assert re.findall(r"^COPY --from=(\w+)", final, re.MULTILINE) == ["dependencies", "product"]


def test_torch_of_the_image_is_the_one_that_is_tested() -> None:
    wanted = re.search(r"^ARG TORCH=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert wanted is not None
    assert wanted.group(1) in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_container_has_the_time_to_stop_that_the_gateway_takes(
    compose: dict[str, Any], env_example: dict[str, str]
) -> None:
    settings = Settings()
    assert compose["services"]["gateway"]["stop_grace_period"].startswith("${STOP_GRACE_PERIOD:")
    grace = float(env_example["STOP_GRACE_PERIOD"].removesuffix("s"))
    assert grace >= settings.drain_lead + settings.drain_timeout + 10
