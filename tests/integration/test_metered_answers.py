"""What certified answers cost and show: metrics, headers, rate limits and estimates."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from fs_runtime.engine import SmoothingEngine
from fs_runtime.loading.engine import EngineOptions, load_engine
from fs_runtime.reference import example_images, reference_model_path

from .gateway import Gateway, chat, running_gateway
from .tenants import bearer, write_access

MODEL = "fs-reference"
TENANTS: dict[str, dict[str, Any]] = {
    "free": {},
    "strict": {"min_answer_radius": 2.0, "on_answer_failure": "reject"},
    "counted": {"votes_per_minute": 100, "samples_per_minute": 1000},
    "failing": {"votes_per_minute": 100},
    "estimating": {"votes_per_minute": 64},
    "narrow": {"votes_per_minute": 40},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[SmoothingEngine]:
    engine = load_engine(str(reference_model_path()), EngineOptions(cache_bytes=2**26, psm="auto"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def gateway(engine: SmoothingEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    file = write_access(tmp_path_factory.mktemp("metered") / "access.yaml", **TENANTS)
    options = {"served_model_name": MODEL, "access_file": file}
    with running_gateway(reference_model_path(), engine, answer_samples=64, **options) as running:
        yield running


@pytest.fixture(scope="module")
def circle() -> Image.Image:
    return Image.open(example_images()["red-circle"]).convert("RGB")


def ask(gateway: Gateway, *pictures: Image.Image, tenant: str = "free", **answer: Any) -> httpx.Response:
    """A question about the pictures; ``answer`` is what is asked of the answer, which is certified unless it is
    empty."""
    stream = answer.pop("stream", False)
    body = chat(*pictures, text="What colour is the circle?", max_tokens=24) | {"model": MODEL, "stream": stream}
    body["robustness"] = {"answer": {"certify": True, **answer}} if answer else {}
    return gateway.post("/v1/chat/completions", body, headers=bearer(tenant))


def figures(gateway: Gateway) -> dict[str, float]:
    """Series of answers by name and labels, those of the model left out."""
    text = httpx.get(f"{gateway.url}/metrics", timeout=30).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("model") == MODEL:
                labels = [value for name, value in sorted(sample.labels.items()) if name != "model"]
                found[" ".join([sample.name, *labels])] = sample.value
    return found


def test_metrics_count_votes(gateway: Gateway, circle: Image.Image) -> None:
    before = figures(gateway)
    assert ask(gateway, circle, radius=0.125).status_code == 200  # ends at 32 copies
    assert ask(gateway, circle, radius=1.0, adaptive=False).status_code == 200
    assert ask(gateway, circle, tenant="strict").status_code == 422
    after = figures(gateway)
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown["fs_answers_total certified own"] == 1
    assert grown["fs_answers_total smaller_radius own"] == 1
    assert grown["fs_answers_total smaller_radius default"] == 1
    assert sum(grown.get(f"fs_answer_abstentions_total {why}", 0) for why in ("samples", "agreement")) == 2
    assert grown["fs_answer_radius_count own"] == 2
    assert 0.25 < grown["fs_answer_radius_sum own"] < 1
    assert grown["fs_answer_agreement_count"] == 3
    assert grown["fs_votes_total answered"] == grown["fs_copies_per_answer_sum"] >= 32 + 64
    assert "fs_votes_total failed" not in grown
    assert grown["fs_stage_duration_seconds_count votes"] == 3


def test_headers_say_whether_the_answer_is_certified(gateway: Gateway, circle: Image.Image) -> None:
    voted = ask(gateway, circle, samples=32)
    answer = voted.json()["robustness"]["answer"]
    assert voted.headers["x-robustness-answer-certified"] == "true"
    assert float(voted.headers["x-robustness-answer-radius"]) == pytest.approx(answer["radius"]["model"], abs=1e-6)
    split = ask(gateway, circle, samples=8)  # all of them choose, and none votes
    assert split.headers["x-robustness-answer-certified"] == "false"
    assert float(split.headers["x-robustness-answer-radius"]) == 0
    rejected = ask(gateway, circle, tenant="strict")
    assert rejected.status_code == 422
    assert rejected.headers["x-robustness-answer-certified"] == "true"
    for other in (ask(gateway, circle), ask(gateway, circle, samples=64, stream=True)):
        assert other.status_code == 200
        assert not {name for name in other.headers if name.startswith("x-robustness-answer")}


def remaining(reply: httpx.Response, limit: str = "votes") -> int:
    return int(reply.headers[f"x-ratelimit-remaining-{limit}"])


def test_votes_are_charged_once_for_each_copy_and_given_back(gateway: Gateway, circle: Image.Image) -> None:
    first = ask(gateway, circle, circle, tenant="counted", radius=0.125)  # the most is 64; it ends at 32
    assert first.json()["robustness"]["answer"]["samples"] == 32
    assert (remaining(first), remaining(first, "samples")) == (100 - 64, 1000 - 2 * 64)
    second = ask(gateway, circle, tenant="counted", samples=68)
    assert second.status_code == 200, second.text
    assert remaining(second) == 0  # the other 32 of the first were given back
    third = ask(gateway, circle, tenant="counted", samples=16)
    assert (third.status_code, third.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "100 votes in a minute" in third.json()["error"]["message"]
    assert int(third.headers["retry-after"]) >= 1
    assert ask(gateway, circle, tenant="counted").status_code == 200  # without a vote


def test_more_votes_than_the_limit_are_refused_with_the_remedy(gateway: Gateway, circle: Image.Image) -> None:
    reply = ask(gateway, circle, tenant="narrow", samples=41)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "request_above_rate_limit")
    assert error["param"] == "robustness.answer.samples"
    assert "let fewer copies vote" in error["message"]
    assert ask(gateway, circle, tenant="narrow", samples=40).status_code == 200


def test_votes_on_what_fails_stay_charged(gateway: Gateway, circle: Image.Image) -> None:
    body = chat(circle, text="What is it?") | {"model": MODEL, "robustness": {"answer": {"certify": True}}}
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})
    replies = [gateway.post("/v1/chat/completions", body, headers=bearer("failing")) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [415, 429]


def test_an_estimate_beforehand(gateway: Gateway, circle: Image.Image) -> None:
    ask(gateway, circle, samples=16)  # so that the rate is known
    before = figures(gateway)
    reply = ask(gateway, circle, circle, radius=0.125, estimate=True)
    estimate = reply.json()
    assert reply.status_code == 200
    assert (estimate["object"], estimate["model"], estimate["images"]) == ("answer.estimate", MODEL, 2)
    assert estimate["max_samples"] == 64
    assert estimate["expected_samples"] == 32
    assert 0.125 < estimate["most_radius"] < 0.375
    assert estimate["waiting_votes"] == 0
    assert estimate["copy_bytes"] > 2 * 1000
    assert estimate["seconds"] == max(estimate["smoothing_seconds"], estimate["voting_seconds"]) > 0
    after = figures(gateway)
    for name in ("fs_samples_total", "fs_votes_total answered", "fs_answers_total certified own"):
        assert after[name] == before[name]
    answer = ask(gateway, circle, radius=0.125).json()["robustness"]["answer"]
    assert answer["samples"] == estimate["expected_samples"]
    every = ask(gateway, circle, adaptive=False).json()["robustness"]["answer"]
    assert every["radius"]["model"] <= estimate["most_radius"] + 1e-9


def test_an_estimate_costs_no_votes_and_is_refused_as_the_request_would_be(
    gateway: Gateway, circle: Image.Image
) -> None:
    assert ask(gateway, circle, tenant="estimating", samples=64, estimate=True).status_code == 200
    assert remaining(ask(gateway, circle, tenant="estimating", estimate=True)) == 64
    assert ask(gateway, circle, tenant="estimating", samples=64).status_code == 200
    for pictures, asked, param in (
        ([circle], {"certify": False}, "robustness.answer.estimate"),
        ([circle], {"choices": ["a"]}, "robustness.answer.choices"),
        ([circle] * 9, {}, "messages"),
        ([], {}, "messages"),
    ):
        refused = ask(gateway, *pictures, estimate=True, **asked)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_the_interface_for_machines_has_the_answer(gateway: Gateway) -> None:
    document = httpx.get(f"{gateway.url}/openapi.json", timeout=30).json()
    schemas = document["components"]["schemas"]
    content = document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]["application/json"]
    completion, estimate = content["schema"]["anyOf"]
    assert completion["properties"]["robustness"]["$ref"].removeprefix("#/components/schemas/") in schemas
    assert "answer" in schemas["Robustness"]["properties"]
    assert estimate["$ref"].removeprefix("#/components/schemas/") == "AnswerEstimate"
    assert {"expected_samples", "seconds"} <= schemas["AnswerEstimate"]["properties"].keys()
