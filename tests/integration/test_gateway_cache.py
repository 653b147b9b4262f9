"""The cache as clients see it, over real HTTP."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother

from .gateway import Gateway, chat, data_url, picture, running_gateway, user


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path) -> Iterator[Gateway]:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16, cache_bytes=2**26)
    with running_gateway(tiny_llava, engine, allow_seed=True) as running:
        yield running
    engine.close()


def certify(gateway: Gateway, number: int, **options: Any) -> dict[str, Any]:
    answer = gateway.post("/v1/certify", {"image": data_url(picture(number)), "robustness": options})
    assert answer.status_code == 200, answer.text
    entry: dict[str, Any] = answer.json()["robustness"]["images"][0]
    return entry


def without_timings(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("timings", "cache")}


def test_the_second_turn_of_a_conversation_draws_nothing(gateway: Gateway) -> None:
    first = gateway.post("/v1/chat/completions", chat(picture(1))).json()
    drawn = gateway.engine.samples_drawn
    turns = [user(picture(1)), {"role": "assistant", "content": "A picture."}, {"role": "user", "content": "And now?"}]
    second = gateway.post("/v1/chat/completions", chat(picture(1)) | {"messages": turns}).json()
    (one,), (other,) = (answer["robustness"]["images"] for answer in (first, second))
    assert (one["cache"], other["cache"]) == ("miss", "hit")
    assert without_timings(one) == without_timings(other)
    assert gateway.engine.samples_drawn == drawn


def test_more_samples_are_added_and_other_questions_are_answered(gateway: Gateway) -> None:
    assert certify(gateway, 2, samples=16)["cache"] == "miss"
    more = certify(gateway, 2, samples=40)
    assert (more["cache"], more["samples"]) == ("extended", 40)
    other = certify(gateway, 2, samples=40, confidence=0.9, radius=0.02, min_similarity=0.2, curve=True)
    assert other["cache"] == "hit"
    assert other["norm"]["lower"] > more["norm"]["lower"]
    assert other["norm"]["estimate"] == more["norm"]["estimate"]


def test_who_asks_for_fresh_draws_gets_them(gateway: Gateway) -> None:
    kept = certify(gateway, 3)
    fresh = certify(gateway, 3, cache=False)
    assert fresh["cache"] is None
    assert fresh["norm"]["estimate"] != kept["norm"]["estimate"]
    assert certify(gateway, 3, seed=5)["cache"] is None
    assert without_timings(certify(gateway, 3)) == without_timings(kept)


def encoded(image: Image.Image, kind: str) -> str:
    """A data URL of another lossless file of the same pixels."""
    file = io.BytesIO()
    image.save(file, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def test_another_file_of_the_same_pixels_gets_no_other_draws(gateway: Gateway) -> None:
    first, drawn = certify(gateway, 7), gateway.engine.samples_drawn
    for kind in ("BMP", "WEBP"):
        for _ in range(2):  # of a file that was not decoded before, and of one that was
            answer = gateway.post("/v1/certify", {"image": encoded(picture(7), kind)}).json()
            assert without_timings(answer["robustness"]["images"][0]) == without_timings(first)
    assert gateway.engine.samples_drawn == drawn
    changed = picture(7)
    changed.putpixel((0, 0), tuple(value ^ 1 for value in changed.getpixel((0, 0))))
    other = gateway.post("/v1/certify", {"image": data_url(changed)}).json()["robustness"]["images"][0]
    assert other["cache"] == "miss"
    assert other["norm"]["estimate"] != first["norm"]["estimate"]


def test_a_sigma_that_differs_in_the_fifth_decimal_gets_no_other_draws(gateway: Gateway) -> None:
    first = certify(gateway, 8, sigma=0.125)
    same = certify(gateway, 8, sigma=0.1250001, receipt=True)
    assert (same["cache"], same["sigma"], same["receipt"]["draws"]["sigma"]) == ("hit", 0.125, 0.125)
    assert same["norm"] == first["norm"]
    assert same["radius"] == first["radius"]
    assert certify(gateway, 8, sigma=0.1251)["cache"] == "miss"


def test_a_receipt_of_cached_draws_can_be_replayed(gateway: Gateway, tiny_llava: Path) -> None:
    import numpy as np

    from fs_runtime.receipts import Receipt
    from fs_runtime.receipts.verify import verify

    certify(gateway, 4, samples=10)
    entry = certify(gateway, 4, samples=36, receipt=True)
    assert entry["cache"] == "extended"
    receipt = Receipt.model_validate(entry["receipt"])
    assert (receipt.draws.planned, receipt.draws.samples) == (10, 36)
    found = verify(receipt, np.asarray(picture(4)), lambda: gateway.engine.smoother)
    assert found.verdict == "reproduced", found.problems


def test_metrics_count_what_the_cache_did(gateway: Gateway) -> None:
    certify(gateway, 5)
    certify(gateway, 5)
    lines = httpx.get(f"{gateway.url}/metrics").text.splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert values['fs_cache_requests_total{model="tiny-llava",outcome="hit"}'] >= 1
    assert values['fs_cache_requests_total{model="tiny-llava",outcome="miss"}'] >= 1
    assert values['fs_samples_total{model="tiny-llava"}'] == gateway.engine.samples_drawn
    assert 0 < values['fs_cache_bytes{model="tiny-llava"}'] < 2**26
    assert values['fs_engine_faults_total{kind="out_of_memory",model="tiny-llava"}'] == 0


def test_what_cannot_be_done_in_time_is_refused_with_the_wait(tiny_llava: Path, gateway: Gateway) -> None:
    gateway.engine.warm_up()
    with running_gateway(tiny_llava, gateway.engine, smoothing_timeout=1e-3) as hurried:
        answer = hurried.post("/v1/certify", {"image": data_url(picture(6)), "robustness": {"samples": 4000}})
    assert answer.status_code == 429
    assert answer.json()["error"]["code"] == "overloaded"
    assert int(answer.headers["retry-after"]) >= 1
