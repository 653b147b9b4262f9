from datetime import UTC, datetime
from pathlib import Path

import pytest

from server.access.directory import AccessDirectory
from server.access.keys import digest_of
from server.access.tenants import AccessFileError, contradiction_of, parse_access, read_access
from server.settings.gateway import Settings
from server.settings.request import RequestSettings

DIGEST = digest_of("key").hex()
OTHER = digest_of("other").hex()


def test_a_tenant_has_the_servers_settings_but_for_its_own() -> None:
    text = f"""
tenants:
  acme:
    keys:
      - {{sha256: {DIGEST}, name: ci, expires: 2027-01-01}}
      - sha256: {OTHER}
    samples_per_minute: 1000
    max_sigma: 0.5
    on_failure: reject
  beta: {{}}
"""
    access = parse_access(text.encode(), RequestSettings(samples=32, max_sigma=2.0, requests_per_minute=7))
    acme, beta = access.tenants["acme"].settings, access.tenants["beta"].settings
    assert (acme.samples_per_minute, acme.max_sigma, acme.on_failure) == (1000, 0.5, "reject")
    assert (acme.samples, acme.requests_per_minute) == (32, 7)
    assert (beta.samples_per_minute, beta.max_sigma, beta.requests_per_minute) == (None, 2.0, 7)
    assert [(key.tenant, key.expires) for key in access.keys] == [
        ("acme", datetime(2027, 1, 1, tzinfo=UTC)),
        ("acme", None),
    ]


def test_none_takes_a_limit_of_the_server_away() -> None:
    access = parse_access(b"tenants: {a: {requests_per_minute: null}}", RequestSettings(requests_per_minute=7))
    assert access.tenants["a"].settings.requests_per_minute is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "file"),
        ("[]", "file"),
        ("tenants: {}", "tenants"),
        ("tenant: {a: {}}", "tenant"),
        ("tenants: {a: {keys: [{sha256: abc}]}}", "tenants.a.keys.0.sha256"),
        (f"tenants: {{a: {{keys: [{{sha256: {DIGEST.upper()}}}]}}}}", "tenants.a.keys.0.sha256"),
        ("tenants: {a: {keys: [{key: abc}]}}", "tenants.a.keys.0"),
        ("tenants: {a: {keys: [{}]}}", "tenants.a.keys.0.sha256"),
        ("tenants: {a: {samples_per_minuet: 3}}", "tenants.a.samples_per_minuet"),
        ("tenants: {a: {port: 3}}", "tenants.a.port"),
        ("tenants: {a: {requests_per_minute: 0}}", "tenants.a.requests_per_minute"),
        ("tenants: {'a/b': {}}", "a/b"),
        ('tenants: {"a\\n": {}}', "tenants"),
        ("tenants: {a: {max_samples: 10}}", "tenant a: samples 256 is above max_samples 10"),
        ("tenants: {a: {}, b: {}, a: {}}", "'a' appears twice"),
        ("tenants: {a: {", "line 1"),
        ("tenants: !!python/object/apply:os.system [true]", "not valid YAML"),
        ("\x00", "not valid YAML"),
        (
            f"tenants: {{a: {{keys: [{{sha256: {DIGEST}}}]}}, b: {{keys: [{{sha256: {DIGEST}}}]}}}}",
            "tenant b also belongs to",
        ),
    ],
)
def test_files_that_make_no_sense_are_refused(text: str, words: str) -> None:
    with pytest.raises(AccessFileError) as caught:
        parse_access(text.encode(), RequestSettings())
    assert words in str(caught.value)


def test_a_key_in_the_wrong_place_is_not_repeated_in_the_message() -> None:
    for text in ("tenants: {a: {keys: [{sha256: fs-secret}]}}", "tenants: {a: {keys: [fs-secret]}}", "a: [fs-secret"):
        with pytest.raises(AccessFileError) as caught:
            parse_access(text.encode(), RequestSettings())
        assert "fs-secret" not in str(caught.value)


def test_a_missing_file_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(AccessFileError, match="No such file"):
        read_access(tmp_path / "none.yaml", RequestSettings())
    with pytest.raises(AccessFileError, match="No such file"):
        AccessDirectory(Settings(access_file=tmp_path / "none.yaml"))


def test_a_models_settings_with_the_tenants_own() -> None:
    server = Settings(samples=20)
    text = b"tenants: {acme: {}, beta: {samples: 12, max_sigma: 0.05, models: [m]}}"
    tenants = parse_access(text, server).tenants
    model = server.model_copy(update={"samples": 5, "max_samples": 10, "sigma": 0.1})
    assert tenants["acme"].settings_for(model) == model
    assert tenants["beta"].settings_for(model).samples == 10
    assert tenants["beta"].settings_for(model).sigma == 0.05
    assert tenants["beta"].settings_for(server).samples == 12
    assert [tenants[name].may_use("other") for name in ("acme", "beta")] == [True, False]
    assert tenants["beta"].may_use("m")


def test_a_list_of_models_has_one_at_least() -> None:
    with pytest.raises(AccessFileError, match=r"tenants\.a\.models: List should have at least 1 item"):
        parse_access(b"tenants: {a: {models: []}}", RequestSettings())
    assert parse_access(b"tenants: {a: {models: null}}", RequestSettings()).tenants["a"].may_use("any")


def test_a_tenants_minimum_must_be_in_reach_of_the_samples_of_each_model() -> None:
    server = Settings()
    text = b"tenants: {acme: {min_fidelity: 0.94}, beta: {min_fidelity: 0.94, models: [many]}, gamma: {}}"
    tenants = parse_access(text, server).tenants
    few, many = server.model_copy(update={"samples": 32}), server.model_copy(update={"samples": 1024})
    assert contradiction_of(tenants.values(), {"many": many}) is None
    problem = contradiction_of(tenants.values(), {"many": many, "few": few})
    assert problem is not None
    assert problem.startswith("tenant acme with model few: min_fidelity 0.94 is above")
    del tenants["acme"]
    assert contradiction_of(tenants.values(), {"many": many, "few": few}) is None  # beta may not use it
