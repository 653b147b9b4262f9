"""Every model family behind a real vLLM: the gateway's embeddings give the answers of vLLM's own image path.

One vLLM process for each family serves both paths, so that nothing but the way of the image differs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fs_runtime.encoders import FAMILIES, load_encoder
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing import Smoother

from .families import CASES, FamilyCase
from .gateway import TINY, Gateway, chat, running_gateway
from .test_vllm_embeddings import difference, embeddings_part, logprobs_of, post, question
from .vllm_process import VllmServer, vllm_python

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-3
TOKENS = 12
NO_NOISE = {"sigma": 0}


@dataclass(frozen=True)
class Served:
    """A family's tiny checkpoint behind vLLM, with the gateway in front."""

    case: FamilyCase
    vllm: VllmServer
    gateway: Gateway


THROUGH_VLLM = [case for case in CASES if "vllm" in FAMILIES[case.model_type].language_models]


@pytest.fixture(scope="module", params=THROUGH_VLLM, ids=lambda case: case.model_type)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    case: FamilyCase = request.param
    folder = tmp_path_factory.mktemp(case.model_type)
    model = folder / "model"
    case.build(model)
    vllm = VllmServer(
        vllm_python(), model, "--enable-mm-embeds", *case.vllm, name="tiny-llava", log=folder / "vllm.log"
    )
    engine = SmoothingEngine(Smoother(load_encoder(str(model))), batch_size=16)
    try:
        with vllm, running_gateway(model, engine, language_model="vllm", vllm_url=vllm.url) as gateway:
            yield Served(case, vllm, gateway)
    finally:
        engine.close()


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A smooth random image of this height and width."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size[::-1], Image.Resampling.BICUBIC)


def ask_both(served: Served, *images: Image.Image) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answers of vLLM's own image path and of the gateway at σ = 0."""
    body = chat(*images, max_tokens=TOKENS, ignore_eos=True, logprobs=True, top_logprobs=5) | {"model": TINY}
    answers = (
        httpx.post(f"{served.vllm.url}/v1/chat/completions", json=body, timeout=120),
        served.gateway.post("/v1/chat/completions", body | {"robustness": NO_NOISE}),
    )
    for answer in answers:
        assert answer.status_code == 200, answer.text
    theirs, ours = answers
    return theirs.json(), ours.json()


def assert_parity(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    (expected,), (actual,) = theirs["choices"], ours["choices"]
    assert difference(logprobs_of(actual), logprobs_of(expected)) < TOLERANCE
    assert actual["message"]["content"] == expected["message"]["content"]
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


def test_one_image_of_any_shape(served: Served) -> None:
    for size in served.case.sizes:
        assert_parity(*ask_both(served, picture(size)))


def test_two_images_of_different_shapes(served: Served) -> None:
    pictures = [picture(size, seed) for seed, size in enumerate(served.case.sizes[:2])]
    if not served.case.several:
        refused = served.gateway.post("/v1/chat/completions", chat(*pictures))
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "too_many_images"
        return
    theirs, ours = ask_both(served, *pictures)
    assert_parity(theirs, ours)
    swapped, _ = ask_both(served, *reversed(pictures))
    assert difference(logprobs_of(swapped["choices"][0]), logprobs_of(ours["choices"][0])) > 5 * TOLERANCE


def test_parity_would_notice_a_shift_by_one_token(served: Served) -> None:
    encoder = served.gateway.engine.encoder
    theirs, _ = ask_both(served, picture(served.case.sizes[0]))
    prepared = encoder.prepare(np.asarray(picture(served.case.sizes[0])))
    smoother = served.gateway.engine.smoother
    state = smoother.start(prepared, 0.0, 0)
    smoother.step([(state, 1)])
    payload = encoder.payload(smoother.finish(state).embeddings.roll(1, 0), prepared)
    if payload.keys() != {"image_embeds"}:
        pytest.skip("sent as a dictionary; the swapped images show that parity notices")
    import torch

    answer = post(served.vllm, question(embeddings_part(torch.from_numpy(payload["image_embeds"])))).json()
    first, expected = (logprobs_of(whole["choices"][0])[0] for whole in (answer, theirs))
    shared = first.keys() & expected.keys()
    assert not shared or max(abs(first[token] - expected[token]) for token in shared) > 5 * TOLERANCE


def test_no_image_stops_vllm(served: Served) -> None:
    for size in [(1, 1), (1, 300), (4, 200), (200, 4), (5, 4), (333, 77)]:
        for sigma in (0, 1.0):
            answer = served.gateway.post(
                "/v1/chat/completions", chat(picture(size), robustness={"sigma": sigma, "samples": 2})
            )
            # A shape that the family itself refuses, or more tokens than fit, is the client's error.
            assert answer.status_code in (200, 400), answer.text
    assert httpx.get(f"{served.vllm.url}/health", timeout=10).status_code == 200
    assert_parity(*ask_both(served, picture(served.case.sizes[0], seed=5)))


def test_every_family_served_through_vllm_is_tested() -> None:
    through_vllm = {name for name, family in FAMILIES.items() if "vllm" in family.language_models}
    assert through_vllm - {"llava"} == {case.model_type for case in THROUGH_VLLM}  # llava: test_gateway_vllm.py
