"""Families that vLLM does not serve, behind the gateway with the embedded language model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fs_runtime.encoders import FAMILIES, load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.smoother import Smoother
from server.models.loading import load_model
from server.settings.gateway import Settings

from .families import CASES, FamilyCase
from .gateway import Gateway, chat, data_url, running_gateway

EMBEDDED = [case for case in CASES if FAMILIES[case.model_type].language_models == ("embedded",)]


@pytest.fixture(scope="module", params=EMBEDDED, ids=lambda case: case.model_type)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FamilyCase, Gateway]]:
    case: FamilyCase = request.param
    model = tmp_path_factory.mktemp(case.model_type) / "model"
    case.build(model)
    engine = SmoothingEngine(Smoother(load_encoder(str(model))), batch_size=16)
    try:
        with running_gateway(model, engine, language_model="embedded") as gateway:
            yield case, gateway
    finally:
        engine.close()


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size[::-1], Image.Resampling.BICUBIC)


def test_images_of_different_shapes_are_answered_and_certified(served: tuple[FamilyCase, Gateway]) -> None:
    case, gateway = served
    pictures = [picture(size, seed) for seed, size in enumerate(case.sizes[:2])]
    answer = gateway.post("/v1/chat/completions", chat(*pictures, robustness={"sigma": 0.1, "samples": 8}))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["finish_reason"] in ("stop", "length")
    assert [image["samples"] for image in body["robustness"]["images"]] == [8, 8]


def test_odd_shapes_are_answered(served: tuple[FamilyCase, Gateway]) -> None:
    _, gateway = served
    for size in [(4, 4), (4, 300), (200, 4), (333, 77)]:
        answer = gateway.post("/v1/chat/completions", chat(picture(size, 0), robustness={"sigma": 0, "samples": 1}))
        assert answer.status_code == 200, answer.text


def test_certifying_needs_no_language_model(served: tuple[FamilyCase, Gateway]) -> None:
    case, gateway = served
    options = {"sigma": 0.1, "samples": 32, "token_map": True}
    answer = gateway.post("/v1/certify", {"image": data_url(picture(case.sizes[1], 3)), "robustness": options})
    assert answer.status_code == 200, answer.text
    image = answer.json()["robustness"]["images"][0]
    grids = gateway.engine.encoder.token_grids(
        gateway.engine.encoder.prepare(np.asarray(picture(case.sizes[1], 3))).grid, "encoder"
    )
    rows = [columns for rows, columns in grids for _ in range(rows)]
    assert [len(row) for row in image["token_map"]["similarity"]] == rows


def test_vllm_is_refused_at_start(served: tuple[FamilyCase, Gateway], tmp_path: Path) -> None:
    case, _ = served
    case.build(tmp_path / "model")
    with pytest.raises(ValueError, match=r"vLLM .*; use embedded or none"):
        load_model(Settings(model=str(tmp_path / "model"), language_model="vllm"))
