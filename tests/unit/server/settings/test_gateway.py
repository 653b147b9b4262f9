import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from structlog.testing import capture_logs

from server import run
from server.models.file import ModelsFileError
from server.run import SettingError, read_files, warn_about_client_key, warn_if_exposed
from server.settings.environment import unknown_variables
from server.settings.gateway import Settings

ROOT = Path(__file__).resolve().parents[4]


def test_flags_win_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1\nsamples: 11\nsigma: 0.11\n")
    monkeypatch.setenv("FS_CONFIG", str(file))
    monkeypatch.setenv("FS_PORT", "2")
    monkeypatch.setenv("FS_SAMPLES", "22")
    settings = Settings(_cli_parse_args=["--port", "3"])
    assert (settings.port, settings.samples, settings.sigma, settings.max_images) == (3, 22, 0.11, 8)


def test_keys_come_as_a_list_or_separated_by_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_API_KEYS", "one, two,")
    assert [key.get_secret_value() for key in Settings().api_keys] == ["one", "two"]
    monkeypatch.delenv("FS_API_KEYS")
    file = tmp_path / "settings.yaml"
    file.write_text("api_keys: [three]\n")
    monkeypatch.setenv("FS_CONFIG", str(file))
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["three"]
    assert "three" not in repr(settings)


@pytest.mark.parametrize(("name", "word"), [("min_similarity", "valid number"), ("access_file", "cannot be read")])
def test_a_variable_without_a_value_does_not_leave_a_check_out(
    name: str, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be misspelt where its value was to come from: then nothing starts."""
    monkeypatch.setenv(f"FS_{name.upper()}", "")
    with pytest.raises((ValidationError, SettingError), match=word):
        read_files(Settings())


def test_a_flag_without_a_value_takes_the_environments_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FS_REMOTE_IMAGE_HOSTS", "*")
    assert Settings(_cli_parse_args=[]).remote_image_hosts == ["*"]
    assert Settings(_cli_parse_args=["--remote-image-hosts", ""]).remote_image_hosts == []


def test_connections_stay_open_longer_than_proxies_keep_them() -> None:
    """90 s by default in Traefik and in Go's client, 60 s in others."""
    assert Settings().client_idle_timeout > 90


def test_every_setting_says_why() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"sigma": -1}, "sigma"),
        ({"sigma": float("nan")}, "sigma"),
        ({"sigma": 2, "max_sigma": 1}, "max_sigma"),
        ({"samples": 10, "max_samples": 5}, "max_samples"),
        ({"vllm_url": "not a url"}, "vllm_url"),
        ({"on_failure": "ignore"}, "on_failure"),
        ({"receipt_key": "/no/such/key.pem"}, "receipt_key"),
        ({"limits_redis_url": "http://127.0.0.1"}, "redis://"),
        ({"limits_redis_url": "redis://:hidden@127.0.0.1:port"}, "not a valid URL"),
        ({"cache_redis_url": "http://127.0.0.1", "cache_redis_key": "k" * 32}, "cache_redis_url must begin"),
        ({"cache_redis_url": "redis://127.0.0.1"}, "forge certificates"),
        ({"cache_redis_key": "k" * 32}, "go together"),
        ({"cache_redis_url": "redis://127.0.0.1", "cache_redis_key": "short"}, "at least 32 characters"),
        ({"cache_redis_url": "redis://127.0.0.1", "cache_redis_key": "k" * 32, "cache_bytes": 0}, "cache_bytes"),
        ({"gpu_memory_fraction": 0}, "gpu_memory_fraction"),
        ({"gpu_memory_fraction": 1.1}, "gpu_memory_fraction"),
        ({"compile": "fast"}, "compile"),
        ({"quantization": "int4"}, "quantization"),
        ({"on_undecided": "ignore"}, "on_undecided"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        Settings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"access_file": "/no/such/access.yaml"}, "setting access_file: /no/such/access.yaml cannot be read"),
        (
            {"api_keys": ["good", "sha256:12"]},
            "setting api_keys: an entry that begins with sha256: must continue",
        ),
        ({"models_file": "/no/such/models.yaml"}, "setting models_file: /no/such/models.yaml cannot be read"),
    ],
)
def test_what_settings_name_is_read_before_anything_is_loaded(
    values: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "configure_logging", lambda _: None)  # it is the process's
    monkeypatch.setattr(run, "load_model", lambda _: pytest.fail("loaded"))
    assert run.run(Settings(**values)) == 2  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith(words)


async def test_settings_of_tenants_and_models_must_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, models = tmp_path / "access.yaml", tmp_path / "models.yaml"
    access.write_text("tenants: {acme: {min_fidelity: 0.94}}")
    many, few = (f"models: [{{name: m, model: reference, samples: {samples}}}]" for samples in (1024, 32))
    models.write_text(few)
    settings = Settings(access_file=access, models_file=models)
    with pytest.raises(SettingError, match="tenant acme with model m: min_fidelity") as caught:
        read_files(settings)
    assert caught.value.setting == "access_file"
    models.write_text(many)
    _, configured = read_files(settings)
    models.write_text(few)
    with pytest.raises(ModelsFileError, match="tenant acme with model m: min_fidelity"):
        await configured.has_changed()
    assert configured.by_name["m"].samples == 1024


def test_unknown_settings_in_the_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("smaples: 3\n")
    monkeypatch.setenv("FS_CONFIG", str(file))
    with pytest.raises(ValidationError, match="smaples"):
        Settings()


def test_names_of_the_served_model(tmp_path: Path) -> None:
    assert Settings().model_name == "fs-reference"
    assert Settings(model="llava-hf/llava-1.5-7b-hf").model_name == "llava-hf/llava-1.5-7b-hf"
    assert Settings(model=str(tmp_path)).model_name == tmp_path.name
    assert Settings(served_model_name="mine").model_name == "mine"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FS_MIN_SIMILARITIES", "FS_MIN_SIMILARITY"),
        ("FS_SMAPLES", "FS_SAMPLES"),
        ("FS_API_KEYZ", "FS_API_KEYS"),
        ("fs_polcy_binds", "FS_POLICY_BINDS"),
        ("FS_XYZZY_0123456789", None),
    ],
)
def test_variables_of_no_setting_are_found(name: str, meant: str | None) -> None:
    (line,) = unknown_variables(["PATH", "FS_SAMPLES", name, "FS_CONFIG"])
    assert line == f"there is no setting {name}" + (f"; is {meant} meant?" if meant else "")


def test_variables_that_others_read_are_left_alone() -> None:
    offered = re.findall(r"^#?(FS_[A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    image = re.findall(r"\b(FS_[A-Z_]+)=", (ROOT / "Dockerfile").read_text())
    sources = "".join(file.read_text() for file in (ROOT / "server/cli").glob("*.py"))
    commands = re.findall(r'envvar="(\w+)"', sources)
    assert {"FS_PUBLISH", "FS_HOST", "FS_API_KEY", "FS_URL"} <= {*offered, *image, *commands}
    assert unknown_variables([*offered, *image, *commands, "fs_model"]) == []


def test_warns_where_a_clients_key_protects_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def warnings(**settings: object) -> list[str]:
        with capture_logs() as logs:
            warn_about_client_key(Settings(**settings))  # type: ignore[arg-type]
        return [entry["event"] for entry in logs]

    assert warnings() == []
    monkeypatch.setenv("FS_API_KEY", "k")
    assert warnings(api_keys=["k"]) == []
    (warning,) = warnings()
    assert "FS_API_KEYS" in warning


def test_warns_where_everyone_is_let_in(tmp_path: Path) -> None:
    def warnings(**settings: object) -> int:
        with capture_logs() as logs:
            warn_if_exposed(Settings(**settings))  # type: ignore[arg-type]
        return len(logs)

    file = tmp_path / "access.yaml"
    file.write_text("tenants: {acme: {}}")
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert warnings(host=host) == 0
    for host in ("0.0.0.0", "::", "10.0.0.1", "gateway.example"):
        assert warnings(host=host) == 1
        assert warnings(host=host, api_keys=["k"]) == warnings(host=host, access_file=file) == 0
