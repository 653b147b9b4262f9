"""Keys, tenants, limits and ceilings through a running gateway, with the real client."""

import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother
from server.access.keys import digest_of

from .gateway import Gateway, chat, data_url, picture, running_gateway
from .serve_process import wait_until
from .tenants import bearer, key_of, write_access

TENANTS: dict[str, dict[str, Any]] = {
    "free": {},
    "requests": {"requests_per_minute": 3},
    "images": {"images_per_minute": 3, "samples_per_minute": 1000},
    "samples": {"samples_per_minute": 40},
    "adaptive": {"samples_per_minute": 600},
    "failing": {"images_per_minute": 2},
    "flood": {"samples_per_minute": 64},
    "small": {
        "max_sigma": 0.2,
        "max_samples": 20,
        "max_images": 1,
        "max_image_pixels": 60 * 60,
        "max_image_bytes": 20_000,
        "max_answer_tokens": 5,
    },
}


@pytest.fixture(autouse=True)
def _not_at_the_turn_of_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts weigh less from one minute to the next; a clock that begins at a full minute keeps tests exact."""
    now, start = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: start // 60 * 60 + now() - start)


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def access_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_access(tmp_path_factory.mktemp("access") / "access.yaml", **TENANTS)


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path, engine: SmoothingEngine, access_file: Path) -> Iterator[Gateway]:
    with running_gateway(tiny_llava, engine, access_file=access_file) as running:
        yield running


def certify(gateway: Gateway, tenant: str, **robustness: Any) -> httpx.Response:
    body = {"image": data_url(picture(1)), "robustness": robustness}
    return gateway.post("/v1/certify", body, headers=bearer(tenant))


def remaining(response: httpx.Response, limit: str) -> int:
    return int(response.headers[f"x-ratelimit-remaining-{limit}"])


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_lets_its_tenant_in_and_nothing_else_does(gateway: Gateway) -> None:
    assert gateway.client(key_of("free")).chat.completions.create(**chat(picture(1))).choices
    for wrong in ("none", key_of("free")[:-1], key_of("nobody")):
        with pytest.raises(openai.AuthenticationError, match="API key"):
            gateway.client(wrong).chat.completions.create(**chat(picture(1)))
    for path in ("/v1/chat/completions", "/v1/certify"):
        assert gateway.post(path, {}).status_code == 401
    assert httpx.get(f"{gateway.url}/v1/models").status_code == 401
    assert httpx.get(f"{gateway.url}/livez").status_code == 200


def test_two_authorization_headers_are_refused(gateway: Gateway) -> None:
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=30)
    connection.putrequest("GET", "/v1/models")
    for tenant in ("free", "requests"):
        connection.putheader("Authorization", bearer(tenant)["authorization"])
    connection.endheaders()
    assert connection.getresponse().status == 401
    connection.close()


def test_logs_name_the_tenant_and_never_the_key(gateway: Gateway, capfd: pytest.CaptureFixture[str]) -> None:
    certify(gateway, "free")
    gateway.post("/v1/certify", {}, headers={"authorization": "Bearer fs-a-wrong-one"})
    shown = ""

    def written(text: str) -> bool:
        nonlocal shown
        shown += "".join(capfd.readouterr())
        return text in shown

    wait_until(lambda: written("401"))  # a request is logged after its answer has been sent
    assert "free" in shown
    assert digest_of(key_of("free")).hex()[:8] in shown  # which key it was, for those who rotate keys
    assert key_of("free") not in shown
    assert "fs-a-wrong-one" not in shown


def test_keys_are_exchanged_while_requests_go_on(tiny_llava: Path, engine: SmoothingEngine, tmp_path: Path) -> None:
    file = write_access(tmp_path / "access.yaml", old={}, stays={})
    with running_gateway(tiny_llava, engine, access_file=file) as gateway:
        statuses: list[int] = []
        done = threading.Event()

        def keep_asking() -> None:
            while not done.is_set():
                statuses.append(certify(gateway, "stays").status_code)

        asking = threading.Thread(target=keep_asking)
        asking.start()
        try:
            write_access(file, new={}, stays={})
            end = time.monotonic() + 20
            while certify(gateway, "new").status_code == 401:
                assert time.monotonic() < end, "the new key was not taken over"
            assert certify(gateway, "old").status_code == 401
            file.write_text("tenants: {new: [")
            while "fs_access_file_current 0.0" not in httpx.get(f"{gateway.url}/metrics").text:
                assert time.monotonic() < end, "the broken file was not noticed"
            assert certify(gateway, "new").status_code == 200
        finally:
            done.set()
            asking.join()
    assert set(statuses) == {200}


# --- limits -----------------------------------------------------------------------------------------------------------


def test_requests_per_minute(gateway: Gateway) -> None:
    client = gateway.client(key_of("requests"))
    for left in (2, 1):
        raw = client.chat.completions.with_raw_response.create(**chat(text="Hello"))
        assert raw.headers["x-ratelimit-limit-requests"] == "3"
        assert raw.headers["x-ratelimit-remaining-requests"] == str(left)
        assert raw.headers["x-ratelimit-reset-requests"].endswith("s")
    failed = gateway.post("/v1/chat/completions", {"model": 3}, headers=bearer("requests"))
    assert (failed.status_code, remaining(failed, "requests")) == (400, 0)  # failing is no way around the limit
    with pytest.raises(openai.RateLimitError, match="3 requests in a minute") as caught:
        client.chat.completions.create(**chat(text="Hello"))
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.code == "rate_limit_exceeded"
    assert certify(gateway, "free").status_code == 200  # other tenants are not affected
    assert client.models.list().data  # listing models costs nothing
    assert 'fs_rate_limited_total{limit="requests"} 1.0' in httpx.get(f"{gateway.url}/metrics").text


def test_images_and_samples_per_minute(gateway: Gateway) -> None:
    two = gateway.post("/v1/chat/completions", chat(picture(1), picture(2)), headers=bearer("images"))
    assert (remaining(two, "images"), remaining(two, "samples")) == (1, 1000 - 32)
    refused = gateway.post("/v1/chat/completions", chat(picture(1), picture(2)), headers=bearer("images"))
    assert refused.status_code == 429
    assert "3 images in a minute" in refused.json()["error"]["message"]
    assert (remaining(refused, "images"), remaining(refused, "samples")) == (1, 1000 - 32)
    text = gateway.post("/v1/chat/completions", chat(text="Hello"), headers=bearer("images"))
    assert (text.status_code, remaining(text, "images")) == (200, 1)


def test_headers_come_with_streams_too(gateway: Gateway) -> None:
    body = chat(picture(1), stream=True, robustness={"samples": 4})
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, headers=bearer("samples")) as response:
        assert response.status_code == 200
        assert remaining(response, "samples") == 36
        response.read()
    too_many = certify(gateway, "samples", samples=41)
    assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "robustness.samples")


def test_samples_that_an_early_end_saves_are_given_back(gateway: Gateway) -> None:
    asked = {"samples": 512, "adaptive": True, "min_similarity": 0.5, "radius": 0.005, "confidence": 0.95}
    first = certify(gateway, "adaptive", **asked)
    used = first.json()["robustness"]["images"][0]["samples"]
    assert used < 500
    second = certify(gateway, "adaptive", **asked)
    assert second.status_code == 200  # 2 · 512 is more than the limit
    assert remaining(second, "samples") == 600 - used - 512


def test_images_that_cannot_be_read_are_charged_all_the_same(gateway: Gateway) -> None:
    body = {"image": "data:image/png;base64,AAAA"}
    statuses = [gateway.post("/v1/certify", body, headers=bearer("failing")).status_code for _ in range(3)]
    assert statuses == [415, 415, 429]


def test_requests_that_come_together_do_not_pass_a_limit_together(gateway: Gateway) -> None:
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(certify(gateway, "flood", samples=16).status_code))
        for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 4 + [429] * 8


# --- ceilings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (chat(picture(1), robustness={"sigma": 0.3}), 400, "robustness.sigma"),
        (chat(picture(1), robustness={"samples": 21}), 400, "robustness.samples"),
        (chat(picture(1), picture(2)), 400, "messages"),
        (chat(picture(1, size=112)), 413, "messages.0.content.0.image_url.url"),
        (chat(picture(1), max_tokens=6), 400, "max_tokens"),
        (chat(picture(1)) | {"max_tokens": None, "max_completion_tokens": 6}, 400, "max_completion_tokens"),
        (chat(picture(1)) | {"max_tokens": "5"}, 400, "max_tokens"),
    ],
)
def test_ceilings_of_a_tenant(gateway: Gateway, body: dict[str, Any], status: int, param: str) -> None:
    response = gateway.post("/v1/chat/completions", {"max_tokens": 5} | body, headers=bearer("small"))
    if "max_tokens" not in param and "max_completion_tokens" not in param:
        response = gateway.post("/v1/chat/completions", body | {"max_tokens": 5}, headers=bearer("small"))
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)
    assert gateway.post("/v1/chat/completions", body | {"max_tokens": 8}, headers=bearer("free")).status_code == 200


def test_an_answer_without_a_length_ends_at_the_ceiling(gateway: Gateway) -> None:
    body = chat(picture(1)) | {"max_tokens": None}
    answer = gateway.post("/v1/chat/completions", body, headers=bearer("small")).json()
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"
