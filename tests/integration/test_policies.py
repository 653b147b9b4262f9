"""Policies on certificates and the audit log, through a running gateway."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother
from server.robustness.withholding import NOTICE

from .gateway import Gateway, chat, data_url, image_part, picture, running_gateway
from .tenants import bearer, key_of, write_access

# At σ = 0.3, 16 samples and radius 0.05 this model's certified similarity is about 0.92 and the estimate 0.997.
MET, UNDECIDED, FAILED = 0.5, 0.98, 0.9999
SERVER = {"sigma": 0.3, "samples": 16, "confidence": 0.9, "min_similarity_radius": 0.05, "allow_seed": True}
TENANTS: dict[str, dict[str, Any]] = {
    "free": {},
    "passing": {"min_similarity": MET, "on_failure": "reject"},
    "flagging": {"min_similarity": FAILED, "on_failure": "flag"},
    "withholding": {"min_similarity": FAILED, "on_failure": "withhold"},
    "rejecting": {"min_similarity": FAILED, "on_failure": "reject"},
    "patient": {"min_similarity": UNDECIDED, "on_failure": "reject", "on_undecided": "flag"},
    "impatient": {"min_similarity": UNDECIDED, "on_failure": "flag", "on_undecided": "reject"},
    "default": {"min_similarity": FAILED, "on_failure": "reject", "policy_binds": False},
    "keeping": {"min_fidelity": 0.05, "on_low_fidelity": "withhold"},
    "losing": {"min_fidelity": 0.85, "on_low_fidelity": "withhold", "samples": 256},
    # Larger pictures are scaled down, and the same radius on them is a smaller one for the encoder.
    "mixed": {
        "min_similarity": MET,
        "on_failure": "withhold",
        "min_similarity_space": "client",
        "min_similarity_radius": 0.4,
    },
}


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path, engine: SmoothingEngine, audit_log: Path) -> Iterator[Gateway]:
    file = write_access(audit_log.parent / "access.yaml", **TENANTS)
    with running_gateway(tiny_llava, engine, access_file=file, audit_log=audit_log, **SERVER) as running:
        yield running


def ask(gateway: Gateway, tenant: str, *images: Image.Image, **robustness: Any) -> httpx.Response:
    body = chat(*(images or (picture(1),)), robustness=robustness)
    return gateway.post("/v1/chat/completions", body, headers=bearer(tenant))


def outcome(response: httpx.Response) -> tuple[int, str, str]:
    robustness = response.json()["robustness"]
    return response.status_code, robustness["decision"], robustness["images"][0]["judgements"][0]["verdict"]


@pytest.mark.parametrize(
    ("tenant", "expected"),
    [
        ("passing", (200, "pass", "met")),
        ("flagging", (200, "flag", "failed")),
        ("withholding", (200, "withhold", "failed")),
        ("rejecting", (422, "reject", "failed")),
        ("patient", (200, "flag", "undecided")),
        ("impatient", (422, "reject", "undecided")),
        ("default", (422, "reject", "failed")),
    ],
)
def test_decisions(gateway: Gateway, tenant: str, expected: tuple[int, str, str]) -> None:
    response = ask(gateway, tenant, **({"radius": 0.05} if tenant == "default" else {}))
    assert outcome(response) == expected
    robustness = response.json()["robustness"]
    assert robustness["satisfied"] is (expected[1] == "pass")
    (requirement,) = robustness["requirements"]
    assert requirement["kind"] == "similarity"
    assert (requirement["source"], requirement["radius"]) == ("server", 0.05)
    assert response.headers["x-robustness-decision"] == expected[1]
    assert response.headers["x-robustness-samples"] == "16"
    if expected[0] == 422:
        code = {"failed": "certificate_below_minimum", "undecided": "certificate_undecided"}[expected[2]]
        assert response.json()["error"]["code"] == code
        assert "this server's min_similarity" in response.json()["error"]["message"]


def test_without_a_minimum_there_is_nothing_to_decide(gateway: Gateway) -> None:
    response = ask(gateway, "free")
    assert response.json()["robustness"]["decision"] is None
    assert "x-robustness-decision" not in response.headers


@pytest.mark.parametrize(
    "robustness",
    [
        {"min_similarity": 0.0},
        {"on_failure": "flag"},
        {"on_undecided": "flag", "on_failure": "flag", "min_similarity": 0.0},
        {"radius": 1e-9},
        {"sigma": 1e-3},
        {"sigma": 0},
        {"confidence": 0.01},
        {"space": "client", "radius": 1e-9, "min_similarity": 0.1},
        {"samples": 2},
    ],
)
def test_no_request_gets_around_what_binds(gateway: Gateway, robustness: dict[str, Any]) -> None:
    response = ask(gateway, "rejecting", **robustness)
    assert response.status_code == 422
    assert response.json()["robustness"]["decision"] == "reject"


def test_few_samples_are_no_way_to_stay_undecided(gateway: Gateway) -> None:
    assert outcome(ask(gateway, "patient", samples=8)) == (422, "reject", "failed")
    assert outcome(ask(gateway, "patient", samples=256)) == (200, "pass", "met")


def test_other_features_than_those_that_are_required_are_refused(gateway: Gateway) -> None:
    response = ask(gateway, "passing", stage="projector")
    assert (response.status_code, response.json()["error"]["code"]) == (400, "policy_conflict")
    assert ask(gateway, "free", stage="projector").status_code == 200


def test_a_request_may_ask_for_more_than_is_required(gateway: Gateway) -> None:
    response = ask(gateway, "passing", min_similarity=FAILED, radius=0.05, on_failure="withhold")
    robustness = response.json()["robustness"]
    assert (response.status_code, robustness["decision"]) == (200, "withhold")
    assert [item["source"] for item in robustness["requirements"]] == ["server", "request"]
    assert [item["verdict"] for item in robustness["images"][0]["judgements"]] == ["met", "failed"]
    rejected = ask(gateway, "flagging", on_failure="reject")
    assert (rejected.status_code, rejected.json()["robustness"]["decision"]) == (422, "reject")


@pytest.mark.parametrize("radius", [0.04, 0.05])
@pytest.mark.parametrize(
    ("tenant", "similarity", "satisfied", "met"),
    [("passing", 0.4, True, True), ("flagging", MET, True, False), ("flagging", 0.9998, False, False)],
)
def test_what_is_asked_is_answered_where_the_operator_requires_more(
    gateway: Gateway, tenant: str, similarity: float, satisfied: bool, met: bool, radius: float
) -> None:
    robustness = ask(gateway, tenant, min_similarity=similarity, radius=radius, on_failure="flag").json()["robustness"]
    assert [item["source"] for item in robustness["requirements"]] == ["server"]
    (image,) = robustness["images"]
    assert image["satisfied"] is satisfied is (image["smoothed"]["best"] >= similarity)
    assert image["certified_radius"][-1]["similarity"] == similarity
    assert robustness["satisfied"] is met


def test_a_default_gives_way_to_the_request(gateway: Gateway) -> None:
    assert ask(gateway, "default", min_similarity=0.1, radius=0.01).json()["robustness"]["decision"] == "pass"
    assert ask(gateway, "default", on_failure="flag").json()["robustness"]["decision"] == "flag"


def test_certify_is_held_to_the_policy_too(gateway: Gateway) -> None:
    body = {"image": data_url(picture(1))}
    assert gateway.post("/v1/certify", body, headers=bearer("rejecting")).status_code == 422
    withheld = gateway.post("/v1/certify", body, headers=bearer("withholding")).json()["robustness"]
    assert (withheld["decision"], withheld["images"][0]["withheld"]) == ("withhold", True)


def test_a_fidelity_may_be_required(gateway: Gateway) -> None:
    kept, lost = (ask(gateway, tenant) for tenant in ("keeping", "losing"))
    assert outcome(kept) == (200, "pass", "met")
    assert lost.json()["robustness"]["decision"] == "withhold"
    (requirement,) = lost.json()["robustness"]["requirements"]
    assert requirement == {
        "kind": "fidelity",
        "source": "server",
        "fidelity": 0.85,
        "on_failure": "withhold",
        "on_undecided": "withhold",
    }
    (image,) = lost.json()["robustness"]["images"]
    assert image["withheld"] is True
    assert image["judgements"][0]["certified"] == image["fidelity"]["lower"]
    assert image["judgements"][0]["estimate"] == image["fidelity"]["served"] < 1
    assert float(lost.headers["x-robustness-fidelity"]) == pytest.approx(image["fidelity"]["lower"], abs=1e-6)
    # A request adds to it and takes nothing away; without noise nothing is lost.
    assert ask(gateway, "losing", min_fidelity=0.1).json()["robustness"]["decision"] == "withhold"
    assert ask(gateway, "keeping", min_fidelity=1.0).json()["robustness"]["decision"] == "withhold"
    assert ask(gateway, "losing", sigma=0).json()["robustness"]["decision"] == "pass"
    assert ask(gateway, "free", min_fidelity=1.0).json()["robustness"]["decision"] == "flag"
    for wrong in (0, 1.5, "x"):
        answer = ask(gateway, "free", min_fidelity=wrong)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "robustness.min_fidelity")


# --- answers without the image ----------------------------------------------------------------------------------------


def with_notice(*parts: dict[str, Any], **robustness: Any) -> dict[str, Any]:
    content = [*parts, {"type": "text", "text": "What is this?"}]
    return chat(robustness=robustness) | {"messages": [{"role": "user", "content": content}]}


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_the_language_model_sees_a_notice_in_place_of_the_image(gateway: Gateway) -> None:
    answers = {content(ask(gateway, "withholding", picture(seed)).json()) for seed in range(4)}
    told = with_notice({"type": "text", "text": NOTICE})
    assert answers == {content(gateway.post("/v1/chat/completions", told, headers=bearer("free")).json())}
    robustness = ask(gateway, "withholding").json()["robustness"]
    assert robustness["images"][0]["withheld"] is True
    assert "withheld from the language model, below what is required: image 0" in robustness["detail"]


def test_only_the_images_that_fall_short_are_withheld(gateway: Gateway) -> None:
    small, large = picture(1), picture(2, size=448)
    mixed = ask(gateway, "mixed", small, large, seed=5)
    assert [image["withheld"] for image in mixed.json()["robustness"]["images"]] == [True, False]
    told = with_notice({"type": "text", "text": NOTICE}, image_part(large), seed=5)
    same = gateway.post("/v1/chat/completions", told, headers=bearer("free")).json()
    assert content(mixed.json()) == content(same)
    assert ask(gateway, "mixed", large).json()["robustness"]["decision"] == "pass"


def test_streams_are_decided_before_the_first_token(gateway: Gateway) -> None:
    client = gateway.client(key_of("withholding"))
    raw = client.chat.completions.with_raw_response.create(**chat(picture(1), stream=True))
    assert raw.headers["x-robustness-decision"] == "withhold"
    chunks = list(raw.parse())
    assert chunks[-1].model_extra["robustness"]["decision"] == "withhold"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == content(ask(gateway, "withholding").json())
    with pytest.raises(openai.UnprocessableEntityError, match="min_similarity"):
        gateway.client(key_of("rejecting")).chat.completions.create(**chat(picture(1), stream=True))


# --- audit log --------------------------------------------------------------------------------------------------------


def records(path: Path, request_id: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [record for record in found if record.get("request_id") == request_id]


@pytest.mark.parametrize("tenant", ["free", "passing", "withholding", "rejecting"])
def test_every_decision_is_on_record_before_it_is_answered(gateway: Gateway, audit_log: Path, tenant: str) -> None:
    body = chat(picture(1), picture(2), robustness={"receipt": True})
    response = gateway.post("/v1/chat/completions", body, headers=bearer(tenant))
    robustness = response.json()["robustness"]
    (record,) = records(audit_log, response.headers["x-request-id"])
    assert (record["tenant"], record["decision"]) == (tenant, robustness["decision"])
    assert record["requirements"] == robustness["requirements"]
    for logged, answered in zip(record["images"], robustness["images"], strict=True):
        assert logged["receipt"] == answered["receipt"]
        assert logged["digest"] == answered["receipt"]["image"]["digest"]
        assert logged["smoothed"] == answered["smoothed"]["best"]
        assert logged["judgements"] == answered["judgements"]
    text = json.dumps(record)
    assert "What is this?" not in text
    assert data_url(picture(1))[30:90] not in text


def test_what_holds_no_image_is_not_on_record(gateway: Gateway, audit_log: Path) -> None:
    response = gateway.post("/v1/chat/completions", chat(text="Hello"), headers=bearer("rejecting"))
    assert response.status_code == 200
    assert records(audit_log, response.headers["x-request-id"]) == []


@pytest.mark.parametrize("required", [False, True])
def test_a_full_disk(tiny_llava: Path, engine: SmoothingEngine, required: bool, tmp_path: Path) -> None:
    link = tmp_path / "audit.jsonl"
    link.write_text("")
    with running_gateway(tiny_llava, engine, audit_log=link, audit_required=required) as gateway:
        link.unlink()
        link.symlink_to("/dev/full")
        response = gateway.post("/v1/chat/completions", chat(picture(1)))
        metrics = httpx.get(f"{gateway.url}/metrics").text
    assert response.status_code == (503 if required else 200)
    assert not required or response.json()["error"]["code"] == "audit_unavailable"
    assert "fs_audit_log_up 0.0" in metrics
    assert 'fs_audit_records_total{outcome="lost"} 1.0' in metrics
