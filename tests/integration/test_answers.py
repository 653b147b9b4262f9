"""Certified answers through a running gateway: what is returned, what is refused, and what follows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fs_runtime.engine import SmoothingEngine
from fs_runtime.loading.engine import EngineOptions, load_engine
from fs_runtime.receipts import parse_receipt
from fs_runtime.receipts.verify import verify
from fs_runtime.reference import example_images, reference_model_path
from server.robustness.withholding import NOTICE

from .gateway import Gateway, chat, data_url, running_gateway
from .tenants import bearer, key_of, write_access

MODEL = "fs-reference"
RECEIPT = {"receipt": True}
RED = "What colour is the circle?"
TENANTS: dict[str, dict[str, Any]] = {
    "free": {},
    "strict": {"min_answer_radius": 0.125, "on_answer_failure": "reject"},
    "far": {"min_answer_radius": 2.0, "on_answer_failure": "reject", "on_answer_undecided": "reject"},
    "withholding": {"min_answer_radius": 2.0, "on_answer_failure": "withhold"},
    "mild": {"min_answer_radius": 2.0, "on_answer_failure": "flag", "policy_binds": False},
    "low": {"min_answer_radius": 0.05, "max_sigma": 0.2},
    "choosy": {"min_answer_radius": 0.125, "answer_functions": ["text", "pattern:is (\\w+)"]},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[SmoothingEngine]:
    engine = load_engine(str(reference_model_path()), EngineOptions(cache_bytes=2**26, psm="auto"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def gateway(engine: SmoothingEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("answers")
    file = write_access(folder / "access.yaml", **TENANTS)
    options = {"served_model_name": MODEL, "access_file": file, "allow_seed": True, "audit_log": folder / "audit"}
    with running_gateway(reference_model_path(), engine, answer_samples=64, **options) as running:
        yield running


@pytest.fixture(scope="module")
def circle() -> Image.Image:
    return Image.open(example_images()["red-circle"]).convert("RGB")


def ask(
    gateway: Gateway,
    *pictures: Image.Image,
    answer: dict[str, Any] | None = None,
    text: str = RED,
    tenant: str = "free",
    robustness: dict[str, Any] | None = None,
    **options: Any,
) -> httpx.Response:
    body = chat(*pictures, text=text, **{"max_tokens": 24} | options)
    body["model"] = MODEL
    body["robustness"] = {**(robustness or {}), **({} if answer is None else {"answer": {"certify": True, **answer}})}
    return gateway.post("/v1/chat/completions", body, headers=bearer(tenant))


def seeds_of(reply: httpx.Response) -> list[int]:
    assert reply.status_code == 200, reply.text
    return [int(image["receipt"]["draws"]["seed"]) for image in reply.json()["robustness"]["images"]]


def test_an_answer_is_certified(gateway: Gateway, circle: Image.Image) -> None:
    reply = ask(gateway, circle, answer={})
    body = reply.json()
    answer = body["robustness"]["answer"]
    assert body["choices"][0]["message"]["content"] == "The circle is red."
    assert answer["text"] == "the circle is red"
    assert answer["certified"] is True
    assert answer["satisfied"] is True
    assert 0.125 < answer["radius"]["model"] < 0.375
    assert answer["samples"] == body["robustness"]["images"][0]["samples"] == 64
    assert body["robustness"]["detail"].startswith("the answer is certified: ")
    assert body["robustness"]["images"][0]["certified"] is True
    assert body["usage"]["completion_tokens"] * 64 == answer["usage"]["completion_tokens"]
    assert body["robustness"]["images"][0]["cache"] in (None, "miss")


def test_the_same_request_again_is_the_same_attempt(gateway: Gateway, circle: Image.Image) -> None:
    seeds = [seeds_of(ask(gateway, circle, answer={}, robustness=RECEIPT))[0] for _ in range(2)]
    assert seeds[0] == seeds[1]
    others = [
        ask(gateway, circle, answer={}, text="What colour is the circle ?", robustness=RECEIPT),
        ask(gateway, circle, answer={"pattern": r"is (\w+)"}, robustness=RECEIPT),
        ask(gateway, circle, answer={}, seed=1, robustness=RECEIPT),
        ask(gateway, circle, answer={}, robustness={"sigma": 0.2, **RECEIPT}),
        ask(gateway, circle, answer=None, robustness=RECEIPT),
    ]
    drawn = {seeds[0], *(seeds_of(other)[0] for other in others)}
    assert len(drawn) == 6


def test_one_picture_sent_twice_has_independent_noise(gateway: Gateway, circle: Image.Image) -> None:
    for robustness in (RECEIPT, {"seed": 7, **RECEIPT}):
        first, second = seeds_of(ask(gateway, circle, circle, answer={"samples": 16}, robustness=robustness))
        assert first != second


def test_it_ends_early_at_a_radius(gateway: Gateway, circle: Image.Image) -> None:
    answer = ask(gateway, circle, answer={"radius": 0.125}).json()["robustness"]["answer"]
    assert (answer["samples"], answer["satisfied"]) == (32, True)
    whole = ask(gateway, circle, answer={"radius": 0.125, "adaptive": False}).json()["robustness"]["answer"]
    assert whole["samples"] == 64


def test_radius_on_the_picture_as_sent(gateway: Gateway, circle: Image.Image) -> None:
    large = circle.resize((4 * circle.width, 4 * circle.height))
    answer = ask(gateway, large, answer={"radius": 0.2, "space": "client"}).json()["robustness"]["answer"]
    assert answer["satisfied"] is True
    assert answer["asked_radius"]["client"] == 0.2
    assert answer["asked_radius"]["model"] < 0.2
    assert answer["radius"]["client"] > answer["radius"]["model"]


def test_choices(gateway: Gateway, circle: Image.Image) -> None:
    choices = ["The circle is red.", "The circle is blue.", "The circle is green."]
    body = ask(gateway, circle, answer={"choices": choices}).json()
    assert body["choices"][0]["message"]["content"] == choices[0]
    assert body["robustness"]["answer"]["text"] == choices[0]
    assert {vote["value"] for vote in body["robustness"]["answer"]["values"][0]["votes"]} <= set(choices)


def test_pattern(gateway: Gateway, circle: Image.Image) -> None:
    answer = ask(gateway, circle, answer={"pattern": r"is (\w+)"}).json()["robustness"]["answer"]
    assert (answer["function"], answer["text"], answer["certified"]) == ("pattern", "red", True)


def test_fields(gateway: Gateway, circle: Image.Image) -> None:
    schema = {
        "type": "object",
        "properties": {"shape": {"enum": ["circle", "square"]}, "sure": {"const": True}},
        "required": ["shape", "sure"],
        "additionalProperties": False,
    }
    body = ask(
        gateway,
        circle,
        answer={"fields": ["/shape", "/sure"]},
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "seen", "schema": schema}},
    ).json()
    answer = body["robustness"]["answer"]
    said = json.loads(body["choices"][0]["message"]["content"])
    assert said["sure"] is True
    assert [value["name"] for value in answer["values"]] == ["/shape", "/sure"]
    assert answer["values"][1]["value"] == "true"
    assert answer["values"][1]["certified"] is True
    assert answer["text"] is None


@pytest.mark.parametrize("stream_options", [None, {"include_usage": True}])
def test_streams(gateway: Gateway, circle: Image.Image, stream_options: dict[str, Any] | None) -> None:
    body = chat(circle, text=RED, max_tokens=24, stream=True)
    body |= {"model": MODEL, "robustness": {"answer": {"certify": True}}}
    body |= {} if stream_options is None else {"stream_options": stream_options}
    url, headers = gateway.url + "/v1/chat/completions", bearer("free")
    with httpx.stream("POST", url, json=body, headers=headers, timeout=120) as reply:
        assert reply.status_code == 200
        lines = [line for line in reply.iter_lines() if line]
    comments = [line for line in lines if line.startswith(":")]
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert comments
    assert all(re.fullmatch(r": \d+ of 64 votes", comment) for comment in comments)
    assert lines[-1] == "data: [DONE]"
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert text == "The circle is red."
    assert events[0]["robustness"]["answer"]["certified"] is True
    assert events[-1]["robustness"] == events[0]["robustness"]
    assert ("usage" in events[-1]) == (stream_options is not None)


def test_the_real_client_reads_streams(gateway: Gateway, circle: Image.Image) -> None:
    client = gateway.client(key_of("free"))
    body = chat(circle, text=RED, max_tokens=24)
    stream = client.chat.completions.create(
        **(body | {"model": MODEL}), stream=True, extra_body={"robustness": {"answer": {"certify": True}}}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "The circle is red."
    assert chunks[-1].robustness["answer"]["certified"] is True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "robustness", "param"),
    [
        ({"temperature": 0.5}, {}, "temperature"),
        ({"n": 2}, {}, "n"),
        ({"logprobs": True}, {}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {}, "tools"),
        ({}, {"sigma": 0.0}, "robustness.sigma"),
        ({}, {"answer": {"samples": 5000}}, "robustness.answer.samples"),
        ({}, {"answer": {"samples": 0}}, "robustness.answer.samples"),
        ({}, {"answer": {"choices": ["a"]}}, "robustness.answer.choices"),
        ({}, {"answer": {"choices": ["a", "A."]}}, "robustness.answer.choices"),
        ({}, {"answer": {"pattern": "()"}}, "robustness.answer.pattern"),
        ({}, {"answer": {"pattern": "("}}, "robustness.answer.pattern"),
        ({}, {"answer": {"fields": ["/a"]}}, "response_format"),
        ({}, {"answer": {"fields": ["a"]}}, "robustness.answer.fields"),
        ({}, {"answer": {"pattern": "a", "choices": ["a", "b"]}}, "robustness.answer.pattern"),
        ({"response_format": {"type": "json_object"}}, {"answer": {"choices": ["a", "b"]}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}}, {}, "response_format"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, {}, "chat_template_kwargs"),
        ({}, {"answer": {"on_failure": "reject"}}, "robustness.answer.radius"),
        ({}, {"answer": {"radius": 0.0}}, "robustness.answer.radius"),
        ({}, {"answer": {"nonsense": 1}}, "robustness.answer.nonsense"),
    ],
)
def test_what_cannot_be_voted_on_is_refused(
    gateway: Gateway, circle: Image.Image, options: dict[str, Any], robustness: dict[str, Any], param: str
) -> None:
    asked = {"certify": True, **robustness.pop("answer", {})} if "answer" in robustness else {"certify": True}
    body = chat(circle, text=RED) | options | {"model": MODEL, "robustness": {**robustness, "answer": asked}}
    reply = gateway.post("/v1/chat/completions", body, headers=bearer("free"))
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


def test_what_is_refused_before_the_first_vote_is_an_ordinary_error(gateway: Gateway, circle: Image.Image) -> None:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = chat(circle, text=RED, stream=True) | {"model": MODEL, "robustness": {"answer": {"certify": True}}}
    body["messages"][0]["content"].append(broken)
    assert gateway.post("/v1/chat/completions", body, headers=bearer("free")).status_code == 415


def test_a_certificate_without_a_conversation_has_no_answer(gateway: Gateway, circle: Image.Image) -> None:
    body = {"image": data_url(circle), "robustness": {"answer": {"certify": True}}}
    reply = gateway.post("/v1/certify", body, headers=bearer("free"))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "robustness.answer")


def test_there_must_be_an_image(gateway: Gateway) -> None:
    reply = ask(gateway, answer={}, text="Hello")
    assert reply.status_code == 400
    assert "holds none" in reply.json()["error"]["message"]


def test_a_broken_image_ends_the_vote(gateway: Gateway, circle: Image.Image) -> None:
    body = chat(circle, text=RED) | {"model": MODEL, "robustness": {"answer": {"certify": True}}}
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})
    reply = gateway.post("/v1/chat/completions", body, headers=bearer("free"))
    assert reply.status_code == 415
    assert gateway.engine._copies.used == 0


# --- policies ---------------------------------------------------------------------------------------------------------


def test_a_binding_radius_has_every_answer_voted_on(gateway: Gateway, circle: Image.Image) -> None:
    robustness = ask(gateway, circle, tenant="strict").json()["robustness"]
    assert robustness["decision"] == "pass"
    assert robustness["answer"]["satisfied"] is True
    assert robustness["requirements"] == [
        {
            "source": "server",
            "radius": 0.125,
            "space": "model",
            "on_failure": "reject",
            "on_undecided": "reject",
            "kind": "answer",
        }
    ]
    text = ask(gateway, tenant="strict", text="Hello")  # without an image there is nothing to certify
    assert text.status_code == 200
    off = ask(gateway, circle, tenant="strict", robustness={"answer": {"certify": False}}).json()["robustness"]
    assert off["answer"]["satisfied"] is True


def test_a_binding_radius_pins_sigma_and_function(gateway: Gateway, circle: Image.Image) -> None:
    for options in (
        {"robustness": {"sigma": 0.3}},
        {"answer": {"choices": ["a", "b"]}},
        {"answer": {"pattern": r"(\w+)"}},
    ):
        reply = ask(gateway, circle, tenant="strict", **options)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "policy_conflict")
    listed = ask(gateway, circle, tenant="choosy", answer={"pattern": r"is (\w+)"})
    assert listed.json()["robustness"]["answer"]["text"] == "red"
    other = ask(gateway, circle, tenant="choosy", answer={"pattern": r"(\w+)"})
    assert other.json()["error"]["code"] == "policy_conflict"


def test_a_binding_radius_pins_confidence_and_draws(gateway: Gateway, circle: Image.Image) -> None:
    """A small confidence would certify anything, and fresh draws at every request would be further attempts."""
    plain = ask(gateway, circle, tenant="far", robustness=RECEIPT).json()["robustness"]
    weak = ask(gateway, circle, tenant="far", robustness={"confidence": 0.01, **RECEIPT}).json()["robustness"]
    again = ask(gateway, circle, tenant="far", robustness={"cache": False, **RECEIPT}).json()["robustness"]
    assert plain["answer"]["confidence"] == weak["answer"]["confidence"] == 0.999
    assert plain["answer"]["radius"] == weak["answer"]["radius"] == again["answer"]["radius"]
    seeds = {answer["images"][0]["receipt"]["draws"]["seed"] for answer in (plain, weak, again)}
    assert len(seeds) == 1
    free = ask(gateway, circle, answer={}, robustness={"confidence": 0.9}).json()["robustness"]["answer"]
    assert free["confidence"] == 0.9  # where nothing binds, it is the caller's


def test_a_tenants_ceiling_lowers_the_sigma_that_binds(gateway: Gateway, circle: Image.Image) -> None:
    answer = ask(gateway, circle, tenant="low").json()["robustness"]["answer"]
    assert (answer["sigma"], answer["satisfied"]) == (0.2, True)


def test_all_that_is_stated_holds_together(gateway: Gateway, circle: Image.Image) -> None:
    plain = ask(gateway, circle, answer={}).json()["robustness"]["answer"]
    mapped = ask(gateway, circle, answer={}, robustness={"token_map": True}).json()["robustness"]["answer"]
    two = ask(gateway, circle, circle, answer={"samples": 16}).json()["robustness"]["answer"]
    # The answer; and of each image g, what is served, fidelity, and the map.
    for answer, statements in ((plain, 1 + 3), (mapped, 1 + 4), (two, 1 + 2 * 3)):
        assert answer["confidence_together"] == pytest.approx(1 - statements * 0.001)


def test_a_receipt_of_an_image_that_was_voted_about_verifies(
    gateway: Gateway, circle: Image.Image, engine: SmoothingEngine
) -> None:
    body = ask(gateway, circle, answer={"radius": 0.125}, robustness={**RECEIPT, "samples": 200}).json()["robustness"]
    image = body["images"][0]
    assert (image["ended"], image["samples"]) == ("samples", 64) or image["ended"] == "votes"
    found = verify(parse_receipt(json.dumps(image["receipt"]).encode()), np.asarray(circle), lambda: engine.smoother)
    assert found.verdict == "reproduced", found.problems


def test_reject(gateway: Gateway, circle: Image.Image) -> None:
    reply = ask(gateway, circle, tenant="far")
    body = reply.json()
    assert reply.status_code == 422
    assert body["error"]["code"] in ("answer_below_minimum", "answer_undecided")
    assert body["error"]["param"] == "robustness.answer.radius"
    assert body["robustness"]["decision"] == "reject"
    assert "The circle is red" not in body["error"]["message"]
    streamed = ask(gateway, circle, tenant="far", stream=True)
    assert streamed.status_code == 422  # no byte went out before the votes ended


def test_withhold(gateway: Gateway, circle: Image.Image) -> None:
    body = ask(gateway, circle, tenant="withholding").json()
    robustness = body["robustness"]
    assert robustness["decision"] == "withhold"
    assert robustness["images"][0]["withheld"] is True
    assert robustness["answer"]["returned"] is False
    assert NOTICE not in body["choices"][0]["message"]["content"]
    assert body["usage"]["prompt_tokens"] != 74  # the notice stands for the image's tokens


def test_flag(gateway: Gateway, circle: Image.Image) -> None:
    body = ask(gateway, circle, tenant="mild", answer={"radius": 2.0, "on_failure": "flag"}).json()
    assert body["robustness"]["decision"] == "flag"
    assert body["robustness"]["satisfied"] is False
    assert body["choices"][0]["message"]["content"] == "The circle is red."
    assert "not certified at radius 2" in body["robustness"]["detail"]
    plain = ask(gateway, circle, tenant="mild").json()  # it does not bind, so nobody votes
    assert plain["robustness"]["answer"] is None


def test_requirements_of_images_get_their_samples(gateway: Gateway, circle: Image.Image) -> None:
    asked = {"min_similarity": 0.5, "samples": 100}
    body = ask(gateway, circle, answer={"radius": 0.125}, robustness=asked).json()["robustness"]
    assert body["answer"]["samples"] == 32
    assert body["images"][0]["samples"] == 100
    assert [item["kind"] for item in body["requirements"]] == ["similarity", "answer"]
    assert body["decision"] == "pass"


def test_decisions_are_written_down(gateway: Gateway, circle: Image.Image) -> None:
    log = Path(str(gateway.settings.audit_log))
    ask(gateway, circle, answer={"radius": 0.125})
    entry = json.loads(log.read_text().splitlines()[-1])
    assert entry["answer"]["satisfied"] is True
    assert entry["answer"]["radius"]["model"] > 0.125
    assert "text" not in entry["answer"]  # what was said is nobody's business there
