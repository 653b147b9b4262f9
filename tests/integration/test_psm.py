"""A purifier for any encoder behind the gateway: answers, models and receipts name it."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from structlog.testing import capture_logs

from fs_runtime.engine import SmoothingEngine
from fs_runtime.loading.engine import load_smoother
from fs_runtime.preprocessing.pictures import upright_rgb
from fs_runtime.psm.storage import save_purifier
from fs_runtime.psm.unet import UNetConfig, UNetPurifier
from fs_runtime.receipts import parse_receipt
from fs_runtime.receipts.verify import verify
from server.models.loading import log_purifier
from server.settings.gateway import Settings

from .gateway import Gateway, chat, data_url, picture, running_gateway

FACTS = {"name": "photo-test", "encoder": "any", "sigma_low": 0.05, "sigma_high": 0.5}


@pytest.fixture(scope="module")
def engine(tiny_llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmoothingEngine]:
    folder = tmp_path_factory.mktemp("psm")
    torch.manual_seed(1)
    purifier = UNetPurifier(UNetConfig(widths=(8,)))
    save_purifier(folder, purifier, {"name": "photo-test", "sigma": {"served": 0.25, "trained": [0.05, 0.5]}})
    engine = SmoothingEngine(load_smoother(str(tiny_llava), psm=str(folder), device="cpu"), batch_size=16)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def gateway(tiny_llava: Path, engine: SmoothingEngine) -> Iterator[Gateway]:
    with running_gateway(tiny_llava, engine) as running:
        yield running


def test_models_name_it(gateway: Gateway) -> None:
    (model,) = httpx.get(f"{gateway.url}/v1/models").json()["data"]
    assert model["psm"] == FACTS


def test_answers_and_receipts_name_it(gateway: Gateway, engine: SmoothingEngine) -> None:
    answer = gateway.post("/v1/chat/completions", chat(picture(1), robustness={"receipt": True})).json()
    (entry,) = answer["robustness"]["images"]
    assert entry["sigma"] == 0.25  # what it is to be served at
    assert entry["psm"] == FACTS | {"sigma_in_range": True}
    assert "trained" not in answer["robustness"]["detail"]
    receipt = entry["receipt"]
    assert receipt["certificate"]["psm"] == entry["psm"]
    assert receipt["fingerprints"]["purifier"] == engine.smoother.purifier.fingerprint  # type: ignore[union-attr]
    found = verify(parse_receipt(json.dumps(receipt)), upright_rgb(picture(1)), lambda: engine.smoother)
    assert (found.verdict, found.problems) == ("reproduced", [])
    receipt["certificate"].pop("psm")  # as they were before there was this field
    older = verify(parse_receipt(json.dumps(receipt)), upright_rgb(picture(1)), lambda: engine.smoother)
    assert older.verdict == "reproduced"


def test_noise_out_of_its_range_is_said_and_certified(gateway: Gateway) -> None:
    body = {"image": data_url(picture(2)), "robustness": {"sigma": 0.8, "samples": 32, "radius": 0.01}}
    robustness = gateway.post("/v1/certify", body).json()["robustness"]
    assert robustness["images"][0]["psm"]["sigma_in_range"] is False
    assert "sigma 0.8 is outside what the purifier photo-test was trained for, 0.05 to 0.5" in robustness["detail"]
    assert robustness["certified"] is True


def test_without_noise_it_is_not_used(gateway: Gateway) -> None:
    body = {"image": data_url(picture(2)), "robustness": {"sigma": 0}}
    assert gateway.post("/v1/certify", body).json()["robustness"]["images"][0]["psm"] is None


@pytest.mark.parametrize(("sigma", "level"), [(None, "info"), (0.5, "info"), (0.6, "warning"), (0.0, None)])
def test_the_operator_is_told(engine: SmoothingEngine, sigma: float | None, level: str | None) -> None:
    with capture_logs() as logs:
        log_purifier(Settings(sigma=sigma), engine.smoother)
    assert [(line["log_level"], line["psm"]) for line in logs] == ([(level, "photo-test")] if level else [])
