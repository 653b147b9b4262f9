"""Every model family end to end: `fs-serve serve`, in front of a real vLLM started as `fs-serve models` says.

A second vLLM has the vision tower, and answers the same requests by its own image path.
"""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from transformers import AutoTokenizer

from fs_runtime.encoders import FAMILIES, load_encoder
from fs_runtime.encoders.checkpoint import Checkpoint
from fs_runtime.encoders.turn_tokens import turn_tokens
from fs_runtime.smoothing.smoother import Smoother
from server.language_models.vllm.compatibility import CompatibilityCheck
from server.language_models.vllm.model import image_part as embeddings_part
from server.language_models.vllm.pool import Server

from .families import CASES, INTERNVL, LLAVA, LLAVA_NEXT, QWEN2_5_VL, QWEN3_VL, FamilyCase
from .families.case import write_language_part
from .gateway import TINY, chat, image_part
from .serve_process import ServeProcess, serving
from .test_vllm_embeddings import difference, logprobs_of
from .tiny_llava import TEXT_WIDTH
from .vllm_process import EMBEDDINGS_ONLY, VllmForks, VllmServer

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-3
TOKENS = 12
NO_NOISE = {"sigma": 0}
MAX_IMAGES = 8


@dataclass(frozen=True)
class Served:
    """A family's tiny checkpoint behind the gateway.

    Attributes:
        model: The checkpoint's folder.
        images: vLLM with the vision tower.
        embeddings: vLLM behind the gateway.
        gateway: In front of the latter.
    """

    case: FamilyCase
    model: Path
    images: VllmServer
    embeddings: VllmServer
    gateway: ServeProcess


THROUGH_VLLM = [case for case in CASES if "vllm" in FAMILIES[case.model_type].language_models]
# One of each kind: a picture of one size, of any size, in tiles. Each family starts two servers of its own.
ALWAYS = (LLAVA, QWEN2_5_VL, INTERNVL)
PARAMETERS = [
    pytest.param(case, id=case.model_type, marks=() if case in ALWAYS else pytest.mark.slow) for case in THROUGH_VLLM
]


@pytest.fixture(scope="module", params=PARAMETERS)
def served(
    request: pytest.FixtureRequest, vllm_forks: VllmForks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    case: FamilyCase = request.param
    folder = tmp_path_factory.mktemp(case.model_type)
    model = folder / "model"
    case.build(model)
    family = FAMILIES[case.model_type]

    def vllm(checkpoint: Path, *arguments: str, plugin: bool = False) -> VllmServer:
        log = folder / f"vllm-{checkpoint.name}.log"
        # One with the plugin starts as it does outside of tests, where vLLM spawns processes that must find it.
        start = vllm_forks.python if plugin and case is LLAVA_NEXT else vllm_forks
        return VllmServer(start, checkpoint, *arguments, *case.vllm, name=TINY, log=log, plugin=plugin)

    recommended = ("--enable-mm-embeds", "--limit-mm-per-prompt", family.vllm_limit)
    with ExitStack() as stack:
        if family.vllm_tower:
            servers = [vllm(model, *recommended)]
        else:
            # Without the vision part's weights: that it starts proves that it has no vision tower.
            write_language_part(model, folder / "language")
            servers = [vllm(model), vllm(folder / "language", *recommended, plugin=family.vllm_plugin)]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        for server in servers:
            server.wait_until_ready()
        gateway = stack.enter_context(gateway_of(model, servers[-1], folder / "gateway.log"))
        yield Served(case, model, servers[0], servers[-1], gateway)


def gateway_of(model: Path, vllm: VllmServer, log: Path) -> AbstractContextManager[ServeProcess]:
    flags = {
        "--model": str(model),
        "--served-model-name": TINY,
        "--language-model": "vllm",
        "--vllm-url": vllm.url,
        "--samples": "16",
        "--psm": "none",
        "--min-image-side": "1",  # nothing is refused that the model itself would read
    }
    return serving(*(word for flag in flags.items() for word in flag), stderr=log)


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A smooth random image of this height and width."""
    colours = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size[::-1], Image.Resampling.BICUBIC)


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(url: str, *images: Image.Image, **options: Any) -> dict[str, Any]:
    body = chat(*images, max_tokens=TOKENS, logprobs=True, top_logprobs=5)
    answer = client(url).chat.completions.create(**body, extra_body={"ignore_eos": True, **options})
    whole: dict[str, Any] = answer.to_dict()
    return whole


def ask_both(served: Served, *images: Image.Image) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answers of vLLM's own image path and of the gateway at σ = 0."""
    return ask(served.images.url, *images), ask(served.gateway.url, *images, robustness=NO_NOISE)


def assert_parity(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    (expected,), (actual,) = theirs["choices"], ours["choices"]
    assert difference(logprobs_of(actual), logprobs_of(expected)) < TOLERANCE
    assert actual["message"]["content"] == expected["message"]["content"]
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


def assert_other(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The answers differ by more than parity lets through."""
    first, second = (logprobs_of(answer["choices"][0])[0] for answer in (one, other))
    shared = first.keys() & second.keys()
    assert not shared or max(abs(first[token] - second[token]) for token in shared) > 5 * TOLERANCE


def test_one_image_of_any_shape(served: Served) -> None:
    for size in served.case.sizes:
        assert_parity(*ask_both(served, picture(size)))


def test_two_images_of_different_shapes(served: Served) -> None:
    pictures = [picture(size, seed) for seed, size in enumerate(served.case.sizes[:2])]
    if not served.case.several:
        with pytest.raises(openai.BadRequestError, match="at most 1"):
            ask(served.gateway.url, *pictures)
        return
    theirs, ours = ask_both(served, *pictures)
    assert_parity(theirs, ours)
    swapped, _ = ask_both(served, *reversed(pictures))
    assert_other(swapped, ours)


def test_parity_would_notice_a_shift_by_one_token(served: Served) -> None:
    image = picture(served.case.sizes[0])
    expected = ask(served.images.url, image)
    encoder = load_encoder(str(served.model))
    smoother = Smoother(encoder)
    prepared = encoder.prepare(np.asarray(image))
    state = smoother.start(prepared, 0.0, 0)
    smoother.step([(state, 1)])
    payload = encoder.payload(smoother.finish(state).embeddings.roll(1, 0), prepared)
    body = chat(max_tokens=TOKENS, logprobs=True, top_logprobs=5)
    body["messages"][0]["content"].insert(0, embeddings_part(payload))
    answer = client(served.embeddings.url).chat.completions.create(**body, extra_body={"ignore_eos": True})
    assert_other(answer.to_dict(), expected)


def test_a_stream_with_certificates(served: Served) -> None:
    pictures = [picture(size, seed) for seed, size in enumerate(served.case.sizes[: 2 if served.case.several else 1])]
    chunks = list(
        client(served.gateway.url).chat.completions.create(
            **chat(*pictures, max_tokens=TOKENS), stream=True, extra_body={"ignore_eos": True, "robustness": NO_NOISE}
        )
    )
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == ask(served.images.url, *pictures)["choices"][0]["message"]["content"]
    certificates = chunks[-1].to_dict()["robustness"]["images"]
    assert len(certificates) == len(pictures)

    noisy = ask(served.gateway.url, *pictures, robustness={"sigma": 0.1, "samples": 64, "radius": 0.01})
    for certificate in noisy["robustness"]["images"]:
        assert certificate["samples"] == 64
        assert certificate["certified"] is True
        assert 0 < certificate["smoothed"]["best"] <= 1


# --- a vLLM that does not fit -----------------------------------------------------------------------------------------


async def fault(served: Served, server: VllmServer, **wrong: Any) -> str | None:
    encoder, family = load_encoder(str(served.model)), FAMILIES[served.case.model_type]
    compatibility = dataclasses.replace(CompatibilityCheck.of(encoder, family, None), **wrong)
    async with httpx.AsyncClient() as connection:
        return await compatibility.find_fault(connection, Server(server.url, limit=1))


async def test_what_does_not_fit_is_found_without_harm(served: Served) -> None:
    width = load_encoder(str(served.model)).language_width
    assert width is not None
    assert await fault(served, served.embeddings) is None
    assert await fault(served, served.embeddings, model=TINY) is None
    other = await fault(served, served.embeddings, width=width + 1)
    assert other is not None
    assert str(width) in other
    assert str(width + 1) in other
    unknown = await fault(served, served.embeddings, model="other")
    assert unknown is not None
    assert "vllm_model" in unknown
    if served.images is not served.embeddings:
        closed = await fault(served, served.images)
        assert closed is not None
        assert FAMILIES[served.case.model_type].vllm_limit in closed
        towerless = await fault(served, served.embeddings, tower=True)
        assert towerless is not None
        assert "image limit is 0" in towerless
    assert_parity(*ask_both(served, picture(served.case.sizes[0], seed=6)))


def test_without_the_plugin_vllm_would_end(vllm_forks: VllmForks, tmp_path: Path) -> None:
    """Shown by trying, and so is that the gateway does not let it come to that."""
    model = tmp_path / "model"
    LLAVA_NEXT.build(model)
    server = VllmServer(vllm_forks, model, *EMBEDDINGS_ONLY, name=TINY, log=tmp_path / "vllm.log")
    with server:
        with gateway_of(model, server, tmp_path / "gateway.log") as gateway:
            assert "deploy/vllm-plugin" in (tmp_path / "gateway.log").read_text()
            assert gateway.post(chat(picture((60, 60)))).status_code == 503
        body = chat(max_tokens=1)
        for tokens in (20, 30):
            part = embeddings_part({"image_embeds": np.ones((tokens, TEXT_WIDTH), np.float32)})
            body["messages"][0]["content"].insert(0, part)
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 500


def test_qwen3_vl_is_not_served_by_a_vllm_without_tower(vllm_forks: VllmForks, tmp_path: Path) -> None:
    """Its embeddings would end vLLM's engine, which the tower's absence has made narrower."""
    model = tmp_path / "model"
    QWEN3_VL.build(model)
    server = VllmServer(vllm_forks, model, *EMBEDDINGS_ONLY, name=TINY, log=tmp_path / "vllm.log")
    log = tmp_path / "gateway.log"
    with server, gateway_of(model, server, log) as gateway:
        assert "start it with --enable-mm-embeds --limit-mm-per-prompt" in log.read_text()
        assert httpx.get(f"{gateway.url}/readyz", timeout=10).json()["language_model"] is False
        for body in (chat(picture((60, 60))), chat(), chat(picture((60, 60)), stream=True)):
            refused = gateway.post(body)
            assert refused.status_code == 503
            assert "does not fit" in refused.json()["error"]["message"]
        assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200


# --- nothing stops vLLM -----------------------------------------------------------------------------------------------


def answers_or_refuses(served: Served, *images: Image.Image, text: str = "What is this?", **robustness: Any) -> int:
    """Sends a request that may be more than the model can take: then it is the client's error and no other one."""
    body = chat(*images, text=text, max_tokens=2, robustness={"samples": 2, **robustness})
    response = served.gateway.post(body)
    assert response.status_code in (200, 400), response.text
    status: int = response.status_code
    return status


@pytest.fixture
def unharmed(served: Served) -> Iterator[None]:
    """Afterwards the same vLLM still gives the right answers."""
    assert served.embeddings.process is not None
    yield
    assert served.embeddings.process.poll() is None, served.embeddings.log_tail()
    assert httpx.get(f"{served.embeddings.url}/health", timeout=10).status_code == 200
    assert_parity(*ask_both(served, picture(served.case.sizes[0], seed=5)))


SIZES = [(1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (4, 200), (200, 4), (5, 4), (333, 77), (7, 1400), (1400, 7)]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("sigma", [0, 1.0])
def test_no_size_of_image_stops_vllm(served: Served, sigma: float) -> None:
    statuses = [answers_or_refuses(served, picture(size), sigma=sigma) for size in SIZES]
    assert statuses.count(200) >= len(SIZES) // 2
    for colour in ("black", "white"):
        answers_or_refuses(served, Image.new("RGB", (60, 50), colour), sigma=sigma)


@pytest.mark.usefixtures("unharmed")
def test_no_number_of_images_stops_vllm(served: Served) -> None:
    small = picture((20, 20))
    assert answers_or_refuses(served, *[small] * (MAX_IMAGES + 1)) == 400
    for count in (3, 5, MAX_IMAGES):
        answers_or_refuses(served, *[small] * count)
    answers_or_refuses(served, *[picture(size) for size in SIZES[:MAX_IMAGES]])


@pytest.mark.usefixtures("unharmed")
def test_no_images_of_several_requests_stop_vllm(served: Served) -> None:
    """vLLM computes them in one batch."""
    pictures = [picture(size, seed) for seed, size in enumerate([*served.case.sizes, *SIZES])]
    with ThreadPoolExecutor(6) as threads:
        statuses = list(threads.map(lambda image: answers_or_refuses(served, image, sigma=0.05), pictures))
    assert statuses.count(200) >= len(served.case.sizes)


@pytest.mark.usefixtures("unharmed")
def test_no_text_stops_vllm(served: Served) -> None:
    encoder = load_encoder(str(served.model))
    image = picture((40, 40))
    for token in encoder.control_tokens:
        for text in (token, token * 9, f"{token}x{token}", f" {token[:-1]}{token}{token[1:]}"):
            assert answers_or_refuses(served, text=text) == 200
            assert answers_or_refuses(served, image, text=text) == 200
    together = "".join(encoder.control_tokens)
    assert answers_or_refuses(served, image, text=together) == 200
    body = chat(image, max_tokens=2)
    body["messages"].insert(0, {"role": "system", "content": together})
    body["messages"].append({"role": "assistant", "content": together})
    body["messages"].append({"role": "user", "content": [{"type": "text", "text": together}, image_part(image)]})
    assert served.gateway.post(body).status_code in (200, 400)


def test_text_speaks_with_no_token_of_images_or_turns(served: Served) -> None:
    """By vLLM's own account of the prompt's tokens: as many special ones as in a prompt of harmless text."""
    tokenizer = AutoTokenizer.from_pretrained(served.model)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)

    def specials(text: str) -> list[int]:
        body = chat(picture((30, 30)), text=text, max_tokens=1, return_token_ids=True, robustness=NO_NOISE)
        response = served.gateway.post(body)
        assert response.status_code == 200, response.text
        return [token for token in response.json()["prompt_token_ids"] if token in special]

    harmless = specials("x")
    assert harmless
    for token in {*turn_tokens(Checkpoint(served.model)), *load_encoder(str(served.model)).control_tokens}:
        assert specials(f"a{token}b") == harmless


@pytest.mark.usefixtures("unharmed")
def test_nothing_drawn_at_random_stops_vllm(served: Served) -> None:
    rng = np.random.default_rng(0)
    tokens = [*load_encoder(str(served.model)).control_tokens, "x", " ", "\n"]
    for _ in range(12):
        sides = np.exp(rng.uniform(0, 6, (rng.integers(1, 4), 2))).astype(int)
        images = [picture((int(height), int(width))) for height, width in sides]
        text = "".join(rng.choice(tokens, rng.integers(1, 6)))
        answers_or_refuses(served, *images, text=text, sigma=float(rng.uniform(0, 1)))


def test_every_family_served_through_vllm_is_tested() -> None:
    through_vllm = {name for name, family in FAMILIES.items() if "vllm" in family.language_models}
    assert through_vllm == {case.model_type for case in THROUGH_VLLM}
