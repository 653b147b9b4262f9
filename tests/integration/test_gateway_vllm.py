"""The gateway in front of a real vLLM that takes embeddings only, with the real client."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.loading.engine import EngineOptions, load_engine
from fs_runtime.reference import example_images, reference_model_path
from fs_runtime.smoothing.smoother import Smoother

from .conftest import TinyLlavaServers
from .gateway import TINY, Gateway, chat, picture, running_gateway, user
from .tenants import bearer, write_access
from .vllm_process import EMBEDDINGS_ONLY, VllmServer, VllmServers

pytestmark = pytest.mark.vllm

NO_NOISE = {"sigma": 0}
LOGPROBS = {"logprobs": True, "top_logprobs": 5, "max_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path, engine: SmoothingEngine, tiny_llava_servers: TinyLlavaServers) -> Iterator[Gateway]:
    url = tiny_llava_servers.embeddings.url
    with running_gateway(tiny_llava, engine, language_model="vllm", vllm_url=url) as running:
        yield running


def tokens_and_logprobs(answer: dict[str, Any]) -> list[dict[str, float]]:
    return [
        {alternative["token"]: alternative["logprob"] for alternative in place["top_logprobs"]}
        for place in answer["choices"][0]["logprobs"]["content"]
    ]


def assert_parity(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Equal text and equal top log-probabilities to 1e-3."""
    assert ours["choices"][0]["message"]["content"] == theirs["choices"][0]["message"]["content"]
    for a, b in zip(tokens_and_logprobs(ours), tokens_and_logprobs(theirs), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([a[token] for token in b], list(b.values()), atol=1e-3)
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


# --- parity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [1, 2])
def test_tiny_llava_equals_vllms_own_image_path(
    gateway: Gateway, tiny_llava_servers: TinyLlavaServers, images: int
) -> None:
    pictures = [picture(seed) for seed in range(images)]
    body = chat(*pictures, **LOGPROBS, ignore_eos=True)
    theirs = httpx.post(f"{tiny_llava_servers.images.url}/v1/chat/completions", json=body, timeout=60).json()
    ours = gateway.post("/v1/chat/completions", body | {"robustness": NO_NOISE}).json()
    assert_parity(ours, theirs)
    other = gateway.post("/v1/chat/completions", chat(picture(9), **LOGPROBS, robustness=NO_NOISE)).json()
    assert tokens_and_logprobs(other)[0] != pytest.approx(tokens_and_logprobs(ours)[0], abs=0.05)


@pytest.fixture(scope="module")
def reference_servers(vllm_servers: VllmServers) -> tuple[VllmServer, VllmServer]:
    """The reference model behind vLLM with its vision tower, and behind one that never loads it."""
    model = reference_model_path()
    servers = (
        vllm_servers.start(model, name="fs-reference"),
        vllm_servers.start(model, *EMBEDDINGS_ONLY, name="fs-reference"),
    )
    for server in servers:
        server.wait_until_ready()
    return servers


def test_reference_model_equals_vllms_own_image_path(reference_servers: tuple[VllmServer, VllmServer]) -> None:
    with_tower, embeddings_only = reference_servers
    model = reference_model_path()
    engine = SmoothingEngine(Smoother(load_encoder(str(model))))
    try:
        # Embeddings go to both: the server without the vision tower, and one that also has it loaded.
        with running_gateway(
            model, engine, served_model_name="fs-reference", language_model="vllm", vllm_url=embeddings_only.url
        ) as gateway:
            for seed, question in enumerate(["Describe the image.", "How many shapes are there?"]):
                image = picture(seed, size=64)
                body = chat(image, text=question, **LOGPROBS) | {"model": "fs-reference"}
                theirs = httpx.post(f"{with_tower.url}/v1/chat/completions", json=body, timeout=60).json()
                ours = gateway.post("/v1/chat/completions", body | {"robustness": NO_NOISE}).json()
                assert_parity(ours, theirs)
    finally:
        engine.close()


def test_votes_at_vllm_are_those_of_the_embedded_model(reference_servers: tuple[VllmServer, VllmServer]) -> None:
    """The same copies, asked about here and there: at most one vote in a hundred differs by arithmetic."""
    model = reference_model_path()
    engine = load_engine(str(model), EngineOptions(psm="auto"))
    circle = Image.open(example_images()["red-circle"]).convert("RGB")
    options = {"served_model_name": "fs-reference", "allow_seed": True, "answer_samples": 128}
    url = reference_servers[1].url
    try:
        with (
            running_gateway(model, engine, **options) as embedded,
            running_gateway(model, engine, **options, language_model="vllm", vllm_url=url) as vllm,
        ):
            for pictures, answer in (
                ([circle], {}),
                ([circle], {"choices": ["The circle is red.", "The circle is orange."]}),
                ([circle], {"pattern": r"is (\w+)", "radius": 0.125}),
                ([picture(4, 96), circle], {"samples": 64}),
            ):
                asked = {"seed": 11, "answer": {"certify": True, **answer}}
                body = chat(*pictures, text="What colour is the circle?", max_tokens=24, robustness=asked)
                body["model"] = "fs-reference"
                here, there = (
                    gateway.post("/v1/chat/completions", body).json()["robustness"]["answer"]
                    for gateway in (embedded, vllm)
                )
                assert here["samples"] == there["samples"]
                assert here["text"] == there["text"]
                ours, theirs = (
                    {vote["value"]: vote["copies"] for vote in one["values"][0]["votes"]} for one in (here, there)
                )
                differing = sum(abs(ours.get(value, 0) - theirs.get(value, 0)) for value in ours.keys() | theirs.keys())
                assert differing / 2 <= 0.01 * here["samples"] + 1
    finally:
        engine.close()


def test_votes_leave_room_for_others(reference_servers: tuple[VllmServer, VllmServer]) -> None:
    """Of all votes together no more are at vLLM than the operator allows, and chats go past those that wait."""
    model = reference_model_path()
    engine = load_engine(str(model), EngineOptions(psm="auto"))
    circle = Image.open(example_images()["red-circle"]).convert("RGB")
    options = {"served_model_name": "fs-reference", "vllm_url": reference_servers[1].url, "max_waiting": 0}
    try:
        with running_gateway(
            model, engine, **options, language_model="vllm", vllm_answer_concurrency=2, vllm_max_in_flight=3
        ) as gateway:
            body = chat(circle, text="What colour is the circle?", max_tokens=24) | {"model": "fs-reference"}
            voted = body | {"robustness": {"answer": {"certify": True, "samples": 64}}}
            with ThreadPoolExecutor(3) as threads:
                votes = [threads.submit(gateway.post, "/v1/chat/completions", voted) for _ in range(2)]
                chats = []
                while not all(vote.done() for vote in votes):
                    chats.append(gateway.post("/v1/chat/completions", body).status_code)
            assert [vote.result().status_code for vote in votes] == [200, 200]
            assert chats
            assert set(chats) == {200}
    finally:
        engine.close()


def test_embeddings_into_a_vllm_that_also_has_its_vision_tower(
    tiny_llava: Path, engine: SmoothingEngine, vllm_servers: VllmServers, tiny_llava_servers: TinyLlavaServers
) -> None:
    both = vllm_servers.start(tiny_llava, "--enable-mm-embeds", name=TINY)
    both.wait_until_ready()
    body = chat(picture(3), **LOGPROBS, ignore_eos=True)
    theirs = httpx.post(f"{both.url}/v1/chat/completions", json=body, timeout=60).json()
    with running_gateway(tiny_llava, engine, language_model="vllm", vllm_url=both.url) as gateway:
        assert_parity(gateway.post("/v1/chat/completions", body | {"robustness": NO_NOISE}).json(), theirs)


# --- the real client --------------------------------------------------------------------------------------------------


def test_the_client_streaming_and_not(gateway: Gateway) -> None:
    body = chat(picture(1), ignore_eos=None)
    del body["ignore_eos"]
    extra = {"robustness": NO_NOISE}
    answer = gateway.client().chat.completions.create(**body, extra_body=extra)
    assert answer.model == TINY
    assert answer.model_extra["robustness"]["images"][0]["sigma"] == 0
    chunks = list(
        gateway.client().chat.completions.create(
            **body, extra_body=extra, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage == answer.usage
    assert [bool((chunk.model_extra or {}).get("robustness")) for chunk in chunks].index(True) == len(chunks) - 1


def test_smoothed_images_are_certified_and_answered(gateway: Gateway) -> None:
    body = chat(picture(1), picture(2), robustness={"sigma": 0.1, "samples": 64, "radius": 0.01, "confidence": 0.95})
    answer = gateway.post("/v1/chat/completions", body).json()
    assert answer["choices"][0]["message"]["content"]
    for certificate in answer["robustness"]["images"]:
        assert certificate["samples"] == 64
        assert certificate["certified"] is True
        assert 0 < certificate["smoothed"]["best"] <= 1


def test_text_only_and_multi_turn(gateway: Gateway) -> None:
    client = gateway.client()
    answer = client.chat.completions.create(model=TINY, max_tokens=4, messages=[{"role": "user", "content": "Hello"}])
    assert answer.model_extra["robustness"]["certified"] is None
    messages: list[Any] = [user(picture(1)), {"role": "assistant", "content": "A."}, user(picture(2), text="And this?")]
    answer = client.chat.completions.create(model=TINY, max_tokens=4, messages=messages)
    assert len(answer.model_extra["robustness"]["images"]) == 2


def test_other_fields_pass_through(gateway: Gateway) -> None:
    answer = gateway.post("/v1/chat/completions", chat(picture(1), n=2, seed=1) | {"temperature": 1.0}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}
    guided = gateway.post("/v1/chat/completions", chat(picture(1), response_format=schema)).json()
    assert isinstance(json.loads(guided["choices"][0]["message"]["content"] or "0"), int)


def test_wrong_model_and_key(tiny_llava: Path, engine: SmoothingEngine, tiny_llava_servers: TinyLlavaServers) -> None:
    url = tiny_llava_servers.embeddings.url
    with running_gateway(tiny_llava, engine, language_model="vllm", vllm_url=url, api_keys=["right"]) as gateway:
        with pytest.raises(openai.AuthenticationError):
            gateway.client("wrong").chat.completions.create(**chat(picture(1)))
        with pytest.raises(openai.NotFoundError, match="tiny-llava"):
            gateway.client("right").chat.completions.create(**chat(picture(1)) | {"model": "other"})
        assert gateway.client("right").chat.completions.create(**chat(picture(1))).choices


def test_what_vllm_refuses_is_the_clients_400(gateway: Gateway) -> None:
    too_long = gateway.post("/v1/chat/completions", chat(text="x" * 2000))
    assert too_long.status_code == 400
    assert too_long.json()["error"]["code"] == "language_model_refused"
    assert "512" in too_long.json()["error"]["message"]
    bad_option = gateway.post("/v1/chat/completions", chat(picture(1)) | {"temperature": -3})
    assert bad_option.status_code == 400


def test_images_cannot_be_smuggled_past_smoothing(gateway: Gateway) -> None:
    """Whatever vLLM would read as an image is refused or smoothed; its own server is still alive afterwards."""
    url = chat(picture(1))["messages"][0]["content"][0]["image_url"]["url"]
    array = base64.b64encode(b"\x93NUMPY").decode()
    parts: list[dict[str, Any]] = [
        {"type": "image_embeds", "image_embeds": array},
        {"type": "input_image", "image_url": url},
        {"type": "image_pil", "image_pil": url},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "text", "text": "x", "image_embeds": array},
        {"type": "text", "text": "x", "image_url": {"url": url}},
        {"image_url": {"url": url}},
        {"image_url": url},
        {"type": "smoothed_image", "index": 0},
    ]
    for part in parts:
        response = gateway.post("/v1/chat/completions", chat() | {"messages": [{"role": "user", "content": [part]}]})
        assert response.status_code == 400, part
    assert gateway.post("/v1/chat/completions", chat(picture(1), text="<image> <image>")).status_code == 200


def test_huge_and_odd_images_reach_vllm_in_one_shape(gateway: Gateway) -> None:
    for size in [(4, 4), (4, 900), (900, 4), (2000, 1500)]:
        body = chat(Image.new("RGB", size, "teal"), max_tokens=2, robustness={"samples": 2})
        assert gateway.post("/v1/chat/completions", body).status_code == 200, size


def test_no_tenant_hits_what_another_has_cached(
    tiny_llava: Path, engine: SmoothingEngine, tiny_llava_servers: TinyLlavaServers, tmp_path: Path
) -> None:
    upstream = tiny_llava_servers.embeddings.url

    def hits() -> float:
        lines = httpx.get(f"{upstream}/metrics", timeout=30).text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))

    def new_hits(tenant: str, **fields: Any) -> float:
        before = hits()
        body = chat(text="one two three " * 25) | fields
        response = gateway.post("/v1/chat/completions", body, headers=bearer(tenant))
        assert response.status_code == 200, response.text
        return hits() - before

    file = write_access(tmp_path / "access.yaml", one={}, two={})
    settings = {"language_model": "vllm", "vllm_url": upstream, "access_file": file}
    with running_gateway(tiny_llava, engine, **settings) as gateway:
        assert new_hits("one") == 0
        assert new_hits("one") > 0
        assert new_hits("two") == 0
        assert new_hits("two", cache_salt="user") == 0  # its own users are parted as well
        assert new_hits("two", cache_salt="user") > 0
        assert new_hits("one", cache_salt="user") == 0
        for wrong in ("", 3, "x" * 257):
            refused = gateway.post("/v1/chat/completions", chat() | {"cache_salt": wrong}, headers=bearer("one"))
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")
