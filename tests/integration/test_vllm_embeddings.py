"""Real vLLM: image embeddings computed outside give the answer of vLLM's own image path.

This pins down what the gateway builds on: the format of the embeddings, the parity, and how vLLM refuses.
"""

import base64
import io
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from .conftest import TinyLlavaServers
from .tiny_llava import IMAGE_SIZE, IMAGE_TOKENS, TEXT_WIDTH
from .vllm_process import SERVE, VllmForks, VllmServer

TOLERANCE = 1e-3
TOKENS = 12

Logprobs = list[dict[str, float]]  # for each token of the answer, its likeliest alternatives


class TinyLlava:
    """The tiny LLaVA in plain transformers code."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(folder)
        self.processor: Any = AutoProcessor.from_pretrained(folder)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def embeddings(self, image: Image.Image, layer: int = -2) -> torch.Tensor:
        """Return what the projector gives the language model, of shape (tokens, text width)."""
        pixels = self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        features = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[layer][:, 1:]
        embeddings: torch.Tensor = self.model.model.multi_modal_projector(features)[0]
        return embeddings

    @torch.no_grad()
    def next_token_logprobs(self, images: list[Image.Image], text: str) -> dict[str, float]:
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(images=images, text=prompt, return_tensors="pt")
        logprobs = self.model(**inputs).logits[0, -1].log_softmax(dim=-1)
        tokens = self.processor.tokenizer.convert_ids_to_tokens(range(len(logprobs)))
        return dict(zip(tokens, logprobs.tolist(), strict=True))


@pytest.fixture(scope="module")
def llava(tiny_llava: Path) -> TinyLlava:
    return TinyLlava(tiny_llava)


def picture(seed: int) -> Image.Image:
    """A smooth random image at the model's own resolution, where no resizing can differ."""
    colours = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def image_part(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def embeddings_part(embeddings: torch.Tensor, **further: Any) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(embeddings.contiguous().clone(), file)
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_embeds", "image_embeds": data, **further}


def question(*parts: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {
        "model": "tiny-llava",
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}],
        "max_tokens": TOKENS,
        "ignore_eos": True,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 5,
        **options,
    }


def post(server: VllmServer, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def ask(server: VllmServer, *parts: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the answer, a chat completion."""
    response = post(server, question(*parts, **options))
    assert response.status_code == 200, response.text
    completion: dict[str, Any] = response.json()
    return completion


def stream(server: VllmServer, *parts: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Return the chunks of the streamed answer."""
    body = question(*parts, stream=True, stream_options={"include_usage": True}, **options)
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def logprobs_of(choice: dict[str, Any]) -> Logprobs:
    """Return the likeliest tokens and their log-probabilities at each place of a choice or of a chunk's."""
    places = choice["logprobs"]["content"] if choice["logprobs"] else []
    return [{token["token"]: token["logprob"] for token in place["top_logprobs"]} for place in places]


def difference(one: Logprobs, other: Logprobs) -> float:
    """Return the largest difference; a token that only one of them lists counts as infinitely far."""
    assert len(one) == len(other) == TOKENS
    return max(
        abs(a.get(token, float("inf")) - b.get(token, float("inf"))) if token in a and token in b else float("inf")
        for a, b in zip(one, other, strict=True)
        for token in a.keys() | b.keys()
    )


@pytest.mark.vllm
@pytest.mark.parametrize("count", [1, 2, 5])
def test_embeddings_give_the_answer_of_the_image_path(
    tiny_llava_servers: TinyLlavaServers, llava: TinyLlava, count: int
) -> None:
    images = [picture(seed) for seed in range(count)]

    of_images = ask(tiny_llava_servers.images, *map(image_part, images))
    of_embeddings = ask(tiny_llava_servers.embeddings, *(embeddings_part(llava.embeddings(image)) for image in images))

    (expected,), (actual,) = of_images["choices"], of_embeddings["choices"]
    assert difference(logprobs_of(actual), logprobs_of(expected)) < TOLERANCE
    assert actual["message"]["content"] == expected["message"]["content"]
    assert actual["finish_reason"] == expected["finish_reason"] == "length"
    assert of_embeddings["usage"] == of_images["usage"]
    assert of_embeddings["usage"]["completion_tokens"] == TOKENS


@pytest.mark.vllm
@pytest.mark.parametrize("count", [1, 2])
def test_a_streamed_answer_is_the_same(tiny_llava_servers: TinyLlavaServers, llava: TinyLlava, count: int) -> None:
    images = [picture(seed) for seed in range(count)]
    whole = ask(tiny_llava_servers.images, *map(image_part, images))

    *chunks, last = stream(
        tiny_llava_servers.embeddings, *(embeddings_part(llava.embeddings(image)) for image in images)
    )

    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    expected = whole["choices"][0]
    assert difference(list(itertools.chain(*map(logprobs_of, choices))), logprobs_of(expected)) < TOLERANCE
    assert "".join(choice["delta"]["content"] for choice in choices) == expected["message"]["content"]
    assert choices[-1]["finish_reason"] == "length"
    assert last["choices"] == []
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [last["usage"][key] for key in counts] == [whole["usage"][key] for key in counts]


@pytest.mark.vllm
def test_transformers_agrees(tiny_llava_servers: TinyLlavaServers, llava: TinyLlava) -> None:
    images = [picture(0), picture(1)]
    first, *_ = logprobs_of(ask(tiny_llava_servers.images, *map(image_part, images))["choices"][0])

    expected = llava.next_token_logprobs(images, "What is this?")

    assert first == pytest.approx({token: expected[token] for token in first}, abs=TOLERANCE)
    assert max(expected, key=expected.__getitem__) in first


@pytest.mark.vllm
@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda llava: [llava.embeddings(picture(1)), llava.embeddings(picture(0))], id="order"),
        pytest.param(lambda llava: [llava.embeddings(picture(0)), llava.embeddings(picture(2))], id="image"),
        pytest.param(lambda llava: [llava.embeddings(picture(i), layer=-1) for i in range(2)], id="layer"),
        pytest.param(lambda llava: [llava.embeddings(picture(i)).roll(1, 0) for i in range(2)], id="tokens"),
        pytest.param(lambda llava: [1.01 * llava.embeddings(picture(i)) for i in range(2)], id="scale"),
    ],
)
def test_parity_would_notice(
    tiny_llava_servers: TinyLlavaServers, llava: TinyLlava, other: Callable[[TinyLlava], list[torch.Tensor]]
) -> None:
    expected = ask(tiny_llava_servers.images, image_part(picture(0)), image_part(picture(1)))

    answer = ask(tiny_llava_servers.embeddings, *map(embeddings_part, other(llava)))

    first, expected_first = (logprobs_of(completion["choices"][0])[0] for completion in (answer, expected))
    shared = first.keys() & expected_first.keys()
    differences = [abs(first[token] - expected_first[token]) for token in shared]
    assert not shared or max(differences) > 5 * TOLERANCE


@pytest.mark.vllm
def test_the_embeddings_server_takes_no_images(tiny_llava_servers: TinyLlavaServers) -> None:
    response = post(tiny_llava_servers.embeddings, question(image_part(picture(0))))

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "image"


@pytest.mark.vllm
def test_text_alone_is_answered(tiny_llava_servers: TinyLlavaServers) -> None:
    answers = [ask(server) for server in tiny_llava_servers]

    one, other = (logprobs_of(answer["choices"][0]) for answer in answers)
    assert difference(one, other) < TOLERANCE


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((IMAGE_TOKENS, TEXT_WIDTH - 1), "hidden dimension mismatch"),
        ((600, TEXT_WIDTH), "maximum context length"),
        ((2, IMAGE_TOKENS, TEXT_WIDTH), "At most 0 image"),
    ],
    ids=["width", "context", "two-in-one-part"],
)
def test_a_wrong_shape_is_refused(tiny_llava_servers: TinyLlavaServers, shape: tuple[int, ...], message: str) -> None:
    response = post(tiny_llava_servers.embeddings, question(embeddings_part(torch.zeros(shape))))

    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"]
    assert error["type"] == "BadRequestError"
    assert error["code"] == 400


@pytest.mark.vllm
def test_a_wrong_number_of_tokens_is_not_refused(tiny_llava_servers: TinyLlavaServers, llava: TinyLlava) -> None:
    """Why a sender must count: vLLM fits the prompt to whatever number of tokens comes."""
    embeddings = llava.embeddings(picture(0))

    whole = ask(tiny_llava_servers.embeddings, embeddings_part(embeddings))
    short = ask(tiny_llava_servers.embeddings, embeddings_part(embeddings[:-1]))

    assert short["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"] - 1


@pytest.mark.vllm
def test_a_uuid_stands_for_the_embeddings(tiny_llava_servers: TinyLlavaServers, llava: TinyLlava) -> None:
    """Why no client may choose it: vLLM answers from what it remembers under a ``uuid``; null is none."""
    first, second = llava.embeddings(picture(0)), llava.embeddings(picture(1))

    def answer(embeddings: torch.Tensor, **further: Any) -> Logprobs:
        return logprobs_of(ask(tiny_llava_servers.embeddings, embeddings_part(embeddings, **further))["choices"][0])

    of_first, of_second = answer(first), answer(second)
    assert difference(answer(first, uuid="picture"), of_first) < TOLERANCE
    assert difference(answer(second, uuid="picture"), of_first) < TOLERANCE  # not what was sent
    assert difference(answer(second, uuid=None), of_second) < TOLERANCE


@pytest.mark.vllm
def test_a_client_that_leaves_ends_the_generation(tiny_llava_servers: TinyLlavaServers, llava: TinyLlava) -> None:
    server = tiny_llava_servers.embeddings
    body = question(embeddings_part(llava.embeddings(picture(0))), stream=True, max_tokens=400, logprobs=False)
    body.pop("top_logprobs")
    before = metric(server, "vllm:generation_tokens_total")

    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)

    assert running_requests_become(0, server)
    assert 0 < metric(server, "vllm:generation_tokens_total") - before < 400


def running_requests_become(count: int, server: VllmServer) -> bool:
    end = time.monotonic() + 60
    while (running := metric(server, "vllm:num_requests_running")) != count and time.monotonic() < end:
        time.sleep(0.05)
    return running == count


def metric(server: VllmServer, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return sum(float(line.rsplit(maxsplit=1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    server = VllmServer(Path(sys.executable), tmp_path, name="none", log=tmp_path / "vllm.log")

    with pytest.raises(RuntimeError, match=r"exit status 1(?s:.*)No module named 'vllm'"), server:
        pass


def test_nothing_is_forked_without_vllm(tmp_path: Path) -> None:
    forks = VllmForks(Path(sys.executable), tmp_path)
    server = VllmServer(forks, tmp_path, name="none", log=tmp_path / "vllm.log")

    with pytest.raises(RuntimeError, match=r"No module named 'vllm'"), server:
        pass
    forks.stop()


@pytest.mark.vllm
def test_a_forked_server_that_cannot_start_says_why(vllm_forks: VllmForks, tmp_path: Path) -> None:
    server = VllmServer(vllm_forks, tmp_path / "nothing", name="none", log=tmp_path / "vllm.log")

    with pytest.raises(RuntimeError, match=r"exit status 1(?s:.*)nothing"), server:
        pass


def test_the_start_up_hook_costs_a_process_nothing() -> None:
    program = "import sys; sys.exit('sitecustomize' not in sys.modules or 'torch' in sys.modules)"
    environment = {"PYTHONPATH": str(SERVE.parent)}

    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == 0
