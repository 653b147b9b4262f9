"""Receipts from the command line and from the gateway, and back."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from fs_runtime.encoders import load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.preprocessing.pictures import upright_rgb
from fs_runtime.receipts import parse_receipt, read_public_key
from fs_runtime.receipts.signing import write_new_key
from fs_runtime.receipts.verify import Verification, verify
from fs_runtime.reference import example_images
from fs_runtime.rounding import at_least
from fs_runtime.smoothing.smoother import Smoother

from .gateway import Gateway, chat, data_url, picture, running_gateway

COMMAND = [sys.executable, "-m", "server.cli"]
IMAGE = str(example_images()["red-circle"])
# What is said of an image by the answer and not by its certificate.
OF_THE_ANSWER = {"cache", "judgements", "withheld", "spectral_left_out"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"COLUMNS": "200", "TERM": "dumb"},
        check=False,
    )


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key, its public part, and a receipt of the shipped model that it signed."""
    folder = tmp_path_factory.mktemp("receipts")
    made = run("keygen", str(folder / "key.pem"))
    assert made.returncode == 0, made.stderr
    (folder / "public.pem").write_text(made.stdout)
    assert "PRIVATE" not in made.stdout + made.stderr
    arguments = ["--samples", "32", "--receipt", str(folder / "receipt.json"), "--key", str(folder / "key.pem")]
    certified = run("certify", IMAGE, *arguments)
    assert certified.returncode == 0, certified.stderr
    return folder


def test_certify_and_verify(files: Path) -> None:
    done = run("verify", str(files / "receipt.json"), IMAGE, "--public-key", str(files / "public.pem"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "REPRODUCED" in done.stdout
    assert "NOT" not in done.stdout
    assert "by the key you trust" in done.stdout
    receipt = parse_receipt((files / "receipt.json").read_bytes())
    assert at_least(receipt.certificate["norm"]["lower"]) in done.stdout


# --- the gateway ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine(tiny_llava: Path) -> Iterator[SmoothingEngine]:
    engine = SmoothingEngine(Smoother(load_encoder(str(tiny_llava))), batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path, engine: SmoothingEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Signs, and wants API keys of its clients."""
    key = tmp_path_factory.mktemp("gateway") / "key.pem"
    write_new_key(key)
    with running_gateway(tiny_llava, engine, receipt_key=key, api_keys=["secret"]) as running:
        yield running


KEY = {"authorization": "Bearer secret"}


def check(receipt: dict[str, Any], image: Image.Image, engine: SmoothingEngine, key: bytes | None) -> Verification:
    return verify(parse_receipt(json.dumps(receipt)), upright_rgb(image), lambda: engine.smoother, key)


def public_key(gateway: Gateway, folder: Path) -> bytes:
    answer = httpx.get(f"{gateway.url}/v1/receipt-key")  # whoever verifies need not be a client
    assert answer.status_code == 200
    body = answer.json()
    assert body.keys() == {"object", "algorithm", "key_id", "pem"}
    (folder / "public.pem").write_text(body["pem"])
    return read_public_key(folder / "public.pem")


def test_chat_gives_a_receipt_for_each_image(gateway: Gateway, engine: SmoothingEngine, tmp_path: Path) -> None:
    key = public_key(gateway, tmp_path)
    pictures = [picture(1), picture(2)]
    body = chat(*pictures, robustness={"receipt": True, "granularity": "token", "space": "client"})
    answer = gateway.post("/v1/chat/completions", body, headers=KEY | {"x-request-id": "req-7"}).json()
    entries = answer["robustness"]["images"]
    seeds = set()
    for image, entry in zip(pictures, entries, strict=True):
        receipt = entry.pop("receipt")
        assert receipt["request_id"] == "req-7"
        assert receipt["certificate"].items() <= entry.items()
        assert entry.keys() - receipt["certificate"].keys() == OF_THE_ANSWER
        seeds.add(receipt["draws"]["seed"])
        found = check(receipt, image, engine, key)
        assert (found.verdict, found.signature, found.problems) == ("reproduced", "trusted", [])
    assert len(seeds) == 2
    first = gateway.post("/v1/chat/completions", body, headers=KEY).json()["robustness"]["images"][0]["receipt"]
    assert check(first, pictures[1], engine, key).verdict == "not_reproduced"


def test_streams_and_rejections_carry_receipts_too(gateway: Gateway, engine: SmoothingEngine) -> None:
    body = chat(picture(1), stream=True, robustness={"receipt": True})
    with httpx.stream("POST", f"{gateway.url}/v1/chat/completions", json=body, timeout=60, headers=KEY) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    (entry,) = json.loads(events[-2])["robustness"]["images"]
    assert check(entry["receipt"], picture(1), engine, None).verdict == "reproduced"
    asked = {"receipt": True, "min_similarity": 0.999, "on_failure": "reject"}
    rejected = gateway.post("/v1/certify", {"image": data_url(picture(1)), "robustness": asked}, headers=KEY)
    assert rejected.status_code == 422
    (entry,) = rejected.json()["robustness"]["images"]
    assert check(entry["receipt"], picture(1), engine, None).verdict == "reproduced"


def test_an_adaptive_end_in_shared_batches_is_replayed(gateway: Gateway, engine: SmoothingEngine) -> None:
    asked = {"receipt": True, "adaptive": True, "min_similarity": 0.5, "radius": 0.005, "samples": 512}
    asked["confidence"] = 0.95
    body = {"image": data_url(picture(1)), "robustness": asked}
    answer = gateway.post("/v1/certify", body, headers=KEY).json()
    receipt = answer["robustness"]["images"][0]["receipt"]
    assert receipt["certificate"]["ended"] == "reached"
    assert receipt["draws"]["samples"] < receipt["draws"]["max_samples"] == 512
    found = check(receipt, picture(1), engine, None)
    assert (found.verdict, found.problems) == ("reproduced", [])


@pytest.mark.parametrize("asked", [{}, {"min_similarity": 0.2}], ids=str)
@pytest.mark.parametrize(("similarity", "ended"), [(0.5, "reached"), (0.9999999, "out_of_reach")])
def test_an_adaptive_end_by_the_operators_minimum_at_another_radius(
    tiny_llava: Path, engine: SmoothingEngine, similarity: float, ended: str, asked: dict[str, Any]
) -> None:
    operator = {"min_similarity": similarity, "min_similarity_radius": 0.005, "adaptive": True, "confidence": 0.95}
    with running_gateway(tiny_llava, engine, receipts=True, samples=512, max_samples=512, **operator) as gateway:
        body = {"image": data_url(picture(1)), "robustness": {"radius": 0.004, **asked}}
        (entry,) = gateway.post("/v1/certify", body).json()["robustness"]["images"]
    receipt = entry["receipt"]
    assert (entry["satisfied"] is None) == (not asked)
    assert receipt["certificate"]["ended"] == ended
    assert receipt["draws"]["samples"] < receipt["draws"]["max_samples"]
    assert receipt["draws"]["until"] == {"radius": 0.005, "space": "model", "min_similarity": similarity}
    found = check(receipt, picture(1), engine, None)
    assert (found.verdict, found.problems) == ("reproduced", [])


def test_a_lossless_copy_of_the_image_is_the_same_image(gateway: Gateway, engine: SmoothingEngine) -> None:
    file = io.BytesIO()
    picture(3).save(file, "BMP")
    body = {"image": data_url(picture(3)), "robustness": {"receipt": True}}
    receipt = gateway.post("/v1/certify", body, headers=KEY).json()["robustness"]["images"][0]["receipt"]
    with Image.open(file) as image:
        assert check(receipt, image, engine, None).verdict == "reproduced"


def test_without_key_and_by_default(tiny_llava: Path, engine: SmoothingEngine) -> None:
    with running_gateway(tiny_llava, engine, receipts=True) as gateway:
        missing = httpx.get(f"{gateway.url}/v1/receipt-key")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "no_receipt_key")
        body = {"image": data_url(picture(1)), "robustness": {}}
        (entry,) = gateway.post("/v1/certify", body).json()["robustness"]["images"]
        found = check(entry["receipt"], picture(1), engine, None)
        assert (found.verdict, found.signature) == ("reproduced", "unsigned")
        body["robustness"] = {"receipt": False}
        (entry,) = gateway.post("/v1/certify", body).json()["robustness"]["images"]
        assert entry["receipt"] is None
