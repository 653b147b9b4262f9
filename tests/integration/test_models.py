"""Several models behind one gateway process: routing, loading and unloading under load, memory, failures."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from PIL import Image

from fs_runtime.loading.engine import load_smoother
from fs_runtime.preprocessing.pictures import upright_rgb
from fs_runtime.receipts import parse_receipt
from fs_runtime.receipts.verify import verify

from .families.llava_onevision import build as build_onevision
from .gateway import data_url, image_part, picture
from .load import Load
from .models_file import write_models
from .serve_process import ServeProcess, serving, wait_until
from .tenants import bearer, write_access
from .tiny_llava import build_tiny_llava
from .vllm_process import EMBEDDINGS_ONLY, VllmServers

LOADING = 120.0  # seconds that a load may take on a busy machine


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny checkpoints of different families, and a third with other weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    build_onevision(folder / "onevision")
    return {
        "llava": build_tiny_llava(folder / "llava"),
        "onevision": folder / "onevision",
        "other": build_tiny_llava(folder / "other", seed=1),
    }


class Models:
    """A gateway process with a models file."""

    def __init__(self, server: ServeProcess, file: Path, log: Path) -> None:
        self.server = server
        self.url = server.url
        self.file = file
        self.log = log

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)

    def listed(self, **options: Any) -> dict[str, dict[str, Any]]:
        return {model["id"]: model for model in self.get("/v1/models", **options).json()["data"]}

    def states(self) -> dict[str, str]:
        states: dict[str, str] = self.get("/readyz").json()["models"]
        return states

    def chat(self, model: str | None, *images: Image.Image, **options: Any) -> httpx.Response:
        content = [*map(image_part, images), {"type": "text", "text": "What is this?"}]
        headers = options.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body | options, timeout=120, headers=headers)

    def certify(self, model: str | None, image: Image.Image, **robustness: Any) -> httpx.Response:
        body = {"image": data_url(image), "robustness": robustness} | ({"model": model} if model else {})
        return httpx.post(f"{self.url}/v1/certify", json=body, timeout=120)

    def metrics(self) -> list[str]:
        return self.get("/metrics").text.splitlines()

    def metric(self, series: str) -> float:
        """Value of one series, as it is written."""
        return next(float(line.rpartition(" ")[2]) for line in self.metrics() if line.startswith(series + " "))

    def until(self, condition: Callable[[], Any], what: str) -> None:
        wait_until(condition, LOADING, f"{what}\n{self.log.read_text()[-4000:]}\n")

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.log.read_text().splitlines()) if line["event"] == event]


@contextmanager
def serving_models(folder: Path, *arguments: str, **models: dict[str, Any]) -> Iterator[Models]:
    file, log = write_models(folder / "models.yaml", **models), folder / "log"
    with serving("--models-file", str(file), "--samples", "8", *arguments, stderr=log) as server:
        yield Models(server, file, log)
        assert server.stop() == 0, log.read_text()


@pytest.fixture(scope="module")
def two(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """Two models that stay, with settings of their own."""
    folder = tmp_path_factory.mktemp("two")
    access = write_access(
        folder / "access.yaml", both={}, one={"models": ["llava"], "samples": 12}, none={"models": ["x"]}
    )
    with serving_models(
        folder,
        *("--access-file", str(access), "--audit-log", str(folder / "audit")),
        llava={"model": checkpoints["llava"], "sigma": 0.1, "max_samples": 10},
        onevision={"model": checkpoints["onevision"], "samples": 6, "max_new_tokens": 5, "receipts": True},
    ) as models:
        yield models


BOTH = {"headers": bearer("both")}


# --- routing ----------------------------------------------------------------------------------------------------------


def test_each_model_answers_requests_that_name_it(two: Models, checkpoints: dict[str, Path]) -> None:
    listed = two.listed(**BOTH)
    assert [(name, model["family"]) for name, model in listed.items()] == [
        ("llava", "llava"),
        ("onevision", "llava_onevision"),
    ]

    def ask(number: int) -> None:
        name = ("llava", "onevision")[number % 2]
        answer = two.chat(name, picture(number), stream=False, **BOTH)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == name
        (certificate,) = answer.json()["robustness"]["images"]
        assert certificate["fingerprints"]["model"] == listed[name]["fingerprint"]
        assert (certificate["sigma"], certificate["samples"]) == {"llava": (0.1, 8), "onevision": (0.25, 6)}[name]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))
    # The same pictures give other features in the other model, not the same from a shared cache.
    assert listed["llava"]["fingerprint"] != listed["onevision"]["fingerprint"]
    records = [json.loads(line) for line in (two.file.parent / "audit").read_text().splitlines()]
    assert Counter(record["model"] for record in records if record["event"] == "decision") >= Counter(
        {"llava": 12, "onevision": 12}
    )
    assert {line.get("model") for line in two.logged("request") if line["route"] == "/v1/chat/completions"} >= {
        "llava",
        "onevision",
    }


def test_streams_name_their_model_too(two: Models) -> None:
    for name in ("llava", "onevision"):
        events = [
            json.loads(line.removeprefix("data: "))
            for line in two.chat(name, picture(1), stream=True, **BOTH).text.splitlines()
            if line.startswith("data: {")
        ]
        assert {event.get("model", name) for event in events} == {name}
        assert len(events[-1]["robustness"]["images"]) == 1


def test_a_receipt_is_reproduced_by_its_model_and_no_other(two: Models, checkpoints: dict[str, Path]) -> None:
    (certificate,) = two.chat("onevision", picture(3), **BOTH).json()["robustness"]["images"]
    receipt = parse_receipt(json.dumps(certificate["receipt"]).encode())
    pixels = upright_rgb(picture(3))
    right, wrong = (
        verify(receipt, pixels, lambda each=each: load_smoother(str(checkpoints[each]), device="cpu", dtype="float32"))
        for each in ("onevision", "llava")
    )
    assert (right.verdict, wrong.verdict) == ("reproduced", "not_reproduced"), (right, wrong)
    assert "model" in " ".join(wrong.problems)


def test_unknown_and_missing_names(two: Models) -> None:
    unknown = two.chat("gpt", **BOTH)
    assert unknown.status_code == 404
    error = unknown.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "not_found_error")
    assert "'llava' or 'onevision'" in error["message"]
    body = {"image": data_url(picture(1))}
    missing = httpx.post(f"{two.url}/v1/certify", json=body, timeout=60, headers=bearer("both"))
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "model_required")
    # Who may use one alone need not name it.
    alone = httpx.post(f"{two.url}/v1/certify", json=body, timeout=60, headers=bearer("one"))
    assert (alone.status_code, alone.json()["model"]) == (200, "llava")


def test_a_tenant_sees_and_uses_its_models_only(two: Models) -> None:
    assert list(two.listed(headers=bearer("one"))) == ["llava"]
    assert two.listed(headers=bearer("none")) == {}
    assert two.get("/v1/models/llava", headers=bearer("one")).json() == two.listed(headers=bearer("one"))["llava"]
    assert two.get("/v1/models/onevision", headers=bearer("one")).status_code == 404
    refused = two.chat("onevision", headers=bearer("one"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert "use 'llava'" in refused.json()["error"]["message"]
    assert refused.json() == json.loads(two.chat("onevisiom", headers=bearer("one")).text.replace("visiom", "vision"))
    assert "use" not in two.chat("llava", headers=bearer("none")).json()["error"]["message"]


def test_settings_come_from_the_tenant_then_the_model_then_the_server(two: Models) -> None:
    def samples(model: str, tenant: str) -> int:
        answer = two.chat(model, picture(9), headers=bearer(tenant), robustness={"cache": False})
        return int(answer.json()["robustness"]["images"][0]["samples"])

    assert samples("onevision", "both") == 6
    assert samples("llava", "both") == 8
    assert samples("llava", "one") == 10  # the tenant's 12, held to the model's ceiling
    over = two.chat("llava", picture(9), headers=bearer("both"), robustness={"samples": 11})
    assert (over.status_code, over.json()["error"]["param"]) == (400, "robustness.samples")
    assert two.chat("onevision", picture(9), headers=bearer("both"), robustness={"samples": 11}).status_code == 200


def test_metrics_and_readiness_by_model(two: Models) -> None:
    two.chat("llava", picture(1), **BOTH)
    for name in ("llava", "onevision"):
        assert two.metric(f'fs_engine_alive{{model="{name}"}}') == 1
        assert two.metric(f'fs_model_state{{model="{name}",state="ready"}}') == 1
    assert two.metric('fs_model_requests_total{model="llava",route="/v1/chat/completions"}') >= 1
    ready = two.get("/readyz", **BOTH)
    assert (ready.status_code, ready.json()["models"]) == (200, {"llava": "ready", "onevision": "ready"})
    assert two.get("/readyz?model=llava", **BOTH).json()["models"] == {"llava": "ready"}


def test_readiness_tells_names_of_models_to_those_who_may_use_them(two: Models) -> None:
    assert two.get("/readyz", headers=bearer("one")).json()["models"] == {"llava": "ready"}
    probe = two.get("/readyz")
    assert (probe.status_code, probe.json()) == (
        200,
        {"ready": True, "engine": True, "language_model": True, "staying": True},
    )
    # A key that is wrong or has expired does not make a gateway unready.
    assert two.get("/readyz", headers={"authorization": "Bearer wrong"}).json() == probe.json()
    # A balancer that routes by model knows the name.
    assert two.get("/readyz?model=onevision").json() == probe.json()
    assert two.get("/readyz?model=gpt").status_code == 404


# --- coming and going -------------------------------------------------------------------------------------------------


@contextmanager
def asking(models: Models, *names: str) -> Iterator[list[tuple[str, int, str]]]:
    """Asks models over and over meanwhile, with and without streams; what came back."""
    seen: list[tuple[str, int, str]] = []
    done = threading.Event()

    def ask(name: str, stream: bool) -> None:
        number = 0
        while not done.is_set():
            number += 1
            answer = models.chat(name, picture(number % 5), stream=stream)
            whole = answer.text.endswith("data: [DONE]\n\n") and "error" not in answer.text if stream else True
            seen.append((name, answer.status_code, answer.text if answer.status_code != 200 or not whole else ""))

    threads = [threading.Thread(target=ask, args=(name, stream)) for name in names for stream in (False, True)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_models_come_change_and_go_under_load_without_losing_a_request(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    bare = {"psm": "none"}  # the default purifier is larger than all of a tiny model
    stays = {"model": checkpoints["llava"], **bare}
    with serving_models(tmp_path, stays=stays, changes=stays) as models:
        before = models.listed()["changes"]["fingerprint"]
        with asking(models, "stays", "changes") as seen:
            wait_until(lambda: len(seen) > 8, LOADING)
            write_models(
                models.file,
                stays=stays,
                changes={"model": checkpoints["other"], **bare},
                comes={"model": checkpoints["onevision"], **bare},
            )
            models.until(lambda: models.states() == dict.fromkeys(("stays", "changes", "comes"), "ready"), "the change")
            assert models.chat("comes", picture(1)).json()["model"] == "comes"
            asked = len(seen)
            wait_until(lambda: len(seen) > asked + 8, LOADING)
        assert {status for _, status, _ in seen} == {200}, [entry for entry in seen if entry[1] != 200]
        assert not [fault for _, _, fault in seen if fault]
        after = models.listed()
        assert list(after) == ["stays", "changes", "comes"]
        assert after["changes"]["fingerprint"] != before
        (certificate,) = models.chat("changes", picture(1)).json()["robustness"]["images"]
        assert certificate["fingerprints"]["model"] == after["changes"]["fingerprint"]
        models.until(lambda: models.metric("fs_model_unloads_total") == 1, "the unload of the former version")

        with asking(models, "stays") as seen:
            # Streams that are under way while their model is unloaded are finished. They are answered one at a time, so
            # that some are whenever the file is read.
            body = {
                "model": "comes",
                "stream": True,
                "messages": [{"role": "user", "content": "Tell."}],
                "max_tokens": 400,
            }
            streams = Load(models.url, [body], clients=8, rounds=1)
            models.until(lambda: models.metric("fs_requests_in_flight") >= 8, "the streams")
            write_models(models.file, stays=stays)
            models.until(lambda: models.states() == {"stays": "ready", "comes": "leaving"}, "leaving")
            gone = models.chat("comes")
            assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
            assert list(models.listed()) == ["stays"]
            ended = streams.join()
            assert all(one.good or (one.status, one.error) == (404, "model_not_found") for one in ended)
            assert any(one.good for one in ended)
            models.until(lambda: models.states() == {"stays": "ready"}, "the unload")
        assert {status for _, status, _ in seen} == {200}
        models.until(lambda: not [line for line in models.metrics() if '"comes"' in line], "the end of its series")
        assert [line for line in models.metrics() if 'model="stays"' in line]


def test_what_cannot_be_loaded_leaves_what_runs(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    runs = {"model": checkpoints["llava"]}
    broken = tmp_path / "broken"
    build_tiny_llava(broken)
    (broken / "model-00001-of-00002.safetensors").unlink()
    huge = tmp_path / "huge"
    write_huge(huge)
    with serving_models(tmp_path, runs=runs) as models:
        fingerprint = models.listed()["runs"]["fingerprint"]
        write_models(models.file, runs={"model": broken}, huge={"model": huge}, away={"model": tmp_path / "nowhere"})
        failed = {"runs": "failed", "huge": "failed", "away": "failed"}
        models.until(lambda: models.states() == failed, "the failures")
        problems = {line["model"]: line for line in models.logged("model could not be loaded")}
        assert "model-00001-of-00002.safetensors" in problems["runs"]["problem"]
        assert "GiB of memory on cpu" in problems["huge"]["problem"]
        assert "does not exist" in problems["away"]["problem"]
        assert [problems[name]["former_runs_on"] for name in failed] == [True, False, False]
        assert models.metric('fs_model_loads_total{outcome="failed"}') == 3
        assert models.metric('fs_model_state{model="huge",state="failed"}') == 1
        # The former version answers, and the gateway stays ready for it.
        assert models.chat("runs", picture(1)).status_code == 200
        assert models.listed()["runs"]["fingerprint"] == fingerprint
        assert models.get("/readyz").status_code == 200
        assert models.get("/readyz?model=huge").status_code == 503
        absent = models.chat("huge")
        assert (absent.status_code, absent.json()["error"]["code"]) == (503, "model_not_loaded")
        assert int(absent.headers["retry-after"]) > 0

        models.file.write_text("models: [{name: runs, model: x, samples: lots}]")
        models.until(lambda: models.metric("fs_models_file_current") == 0, "the broken file")
        (refused,) = models.logged("models file refused, the former one stays in force")
        assert "models.0.samples" in refused["problem"]
        assert models.chat("runs", picture(1)).status_code == 200
        models.file.unlink()
        models.until(lambda: models.metric('fs_models_file_reloads_total{outcome="refused"}') == 2, "the lost file")

        write_models(models.file, runs=runs)
        models.until(lambda: models.states() == {"runs": "ready"}, "the recovery")
        assert models.metric("fs_models_file_current") == 1
        assert not [line for line in models.metrics() if 'state="failed"' in line]


def test_a_model_that_cannot_be_loaded_at_start_is_refused(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    write_huge(tmp_path / "huge")
    file = write_models(
        tmp_path / "models.yaml", fine={"model": checkpoints["llava"]}, huge={"model": tmp_path / "huge"}
    )
    log = tmp_path / "log"
    with pytest.raises(AssertionError, match="ended early: 2"), serving("--models-file", str(file), stderr=log):
        pass
    assert "cannot load the model: " in log.read_text()
    assert "GiB are free" in log.read_text()


def write_huge(folder: Path) -> None:
    """A checkpoint whose header promises a terabyte of vision part; the file has a hole in place of it."""
    build_tiny_llava(folder)
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    size = 2**40
    tensor = {"dtype": "F32", "shape": [2**19, 2**19], "data_offsets": [0, size]}
    header = json.dumps({"vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight": tensor}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)


def test_memory_comes_back_after_an_unload(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    """A model of some 300 MB, embedded language model included, loaded and unloaded again and again."""
    stays = {"model": checkpoints["llava"]}
    large = {"model": write_large(tmp_path / "large"), "batch_size": 4, "dtype": "float32"}
    with serving_models(tmp_path, stays=stays) as models:
        process = psutil.Process(models.server.process.pid)

        def resident() -> float:
            return process.memory_info().rss / 2**20

        def cycle() -> tuple[float, float]:
            write_models(models.file, stays=stays, large=large)
            models.until(lambda: models.states().get("large") == "ready", "the load")
            assert models.chat("large", picture(1)).status_code == 200
            assert models.chat("large", picture(1), stream=True).status_code == 200
            full = resident()
            unloads = models.metric("fs_model_unloads_total")
            write_models(models.file, stays=stays)
            models.until(lambda: models.metric("fs_model_unloads_total") == unloads + 1, "the unload")
            return full, resident()

        models.chat("stays", picture(1))
        cycle()  # libraries fill their own caches once
        rounds = [cycle() for _ in range(3)]
        print("resident MiB, loaded and unloaded:", [(round(full), round(empty)) for full, empty in rounds])
        for full, empty in rounds:
            assert full - empty > 200
        # The allocator may give the last of it back a little later.
        models.until(lambda: resident() < rounds[0][1] + 30, "the end of the memory's use")


def write_large(folder: Path) -> Path:
    """The tiny LLaVA with a wide vision tower and language model, stored in half precision: all of it is copied."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    build_tiny_llava(folder)
    raw = json.loads((folder / "config.json").read_text())
    raw["vision_config"] |= {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    raw["text_config"] |= {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8, "head_dim": 128}
    raw["text_config"] |= {"num_key_value_heads": 8}
    vision, text = CLIPVisionConfig(**raw.pop("vision_config")), LlamaConfig(**raw.pop("text_config"))
    config = LlavaConfig(**raw | {"vision_config": vision, "text_config": text})
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


# --- with vLLM --------------------------------------------------------------------------------------------------------


@pytest.mark.vllm
def test_one_model_behind_vllm_and_one_embedded(
    vllm_servers: VllmServers, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    vllm = vllm_servers.start(checkpoints["onevision"], *EMBEDDINGS_ONLY, name="upstream", plugin=True)
    vllm.wait_until_ready()
    embedded = {"model": checkpoints["llava"]}
    remote = {"model": checkpoints["onevision"], "language_model": "vllm", "vllm_url": vllm.url}
    with serving_models(tmp_path, embedded=embedded) as models:
        write_models(models.file, embedded=embedded, remote=remote)
        models.until(lambda: models.states() == {"embedded": "ready", "remote": "ready"}, "the load")
        with asking(models, "embedded", "remote") as seen:
            wait_until(lambda: {name for name, *_ in seen} == {"embedded", "remote"}, LOADING)
            asked = len(seen)
            wait_until(lambda: len(seen) > asked + 12, LOADING)
        assert {status for _, status, _ in seen} == {200}, seen
        server = vllm.url.removeprefix("http://")
        assert models.metric(f'fs_upstream_healthy{{model="remote",server="{server}"}}') == 1
        assert models.metric(f'fs_upstream_requests_total{{model="remote",outcome="answered",server="{server}"}}') > 2
        # While vLLM of one model is away, the other one is served, and the gateway is ready for it.
        write_models(models.file, embedded=embedded, remote=remote | {"vllm_url": "http://127.0.0.1:9"})
        models.until(lambda: models.get("/readyz?model=remote").status_code == 503, "the loss of vLLM")
        models.until(lambda: not [line for line in models.metrics() if server in line], "the end of its series")
        assert models.chat("remote").json()["error"]["code"] == "language_model_unavailable"
        assert models.chat("embedded", picture(1)).status_code == 200
        assert models.get("/readyz").status_code == 200
        write_models(models.file, embedded=embedded)
        models.until(lambda: not [line for line in models.metrics() if '"remote"' in line], "the end of its series")
