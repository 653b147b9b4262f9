import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from fs_runtime.embedded import ContextLengthError, EmbeddedModel, Generation, PromptError
from fs_runtime.embedded.answer import MIN_TEMPERATURE, StopTextFilter, sample_token
from fs_runtime.encoders import VisionEncoder


@pytest.fixture(scope="module")
def model(tiny_llava: Path) -> EmbeddedModel:
    return EmbeddedModel(str(tiny_llava))


def text_of(model: EmbeddedModel, prompt: object, options: Generation) -> str:
    return "".join(piece.text for piece in model.generate(prompt, options, threading.Event()))  # type: ignore[arg-type]


def test_greedy_answers_equal_transformers_generate(
    model: EmbeddedModel, encoder: VisionEncoder, tiny_llava: Path
) -> None:
    whole = LlavaForConditionalGeneration.from_pretrained(tiny_llava).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llava)
    rng = np.random.default_rng(0)
    for images in (1, 2):
        pictures = [rng.integers(0, 256, (56, 56, 3), dtype=np.uint8) for _ in range(images)]
        content = [{"type": "image"}] * images + [{"type": "text", "text": "What is this?"}]
        messages = [{"role": "user", "content": content}]
        prepared = [encoder.prepare(picture) for picture in pictures]
        with torch.inference_mode():
            payloads = [
                encoder.payload(encoder.project(encoder.encode(image.pixels[None])[0], image.grid), image)
                for image in prepared
            ]
        ours = text_of(model, model.prompt(messages, payloads), Generation(12, temperature=0))

        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt.replace("<image>", "<image>" * 16), return_tensors="pt", add_special_tokens=False)
        mean, std = encoder._mean, encoder._std  # type: ignore[attr-defined]
        pixels = (torch.stack([image.pixels for image in prepared]) - mean) / std
        out = whole.generate(**ids, pixel_values=pixels, max_new_tokens=12, do_sample=False)
        expected = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert ours == expected


def test_number_of_images_must_fit_the_prompt(model: EmbeddedModel) -> None:
    message = [{"role": "user", "content": [{"type": "image"}]}]
    with pytest.raises(PromptError, match="1 image tokens for 0 images"):
        model.prompt(message, [])


def test_prompts_that_are_too_long_are_refused_before_they_are_embedded(model: EmbeddedModel) -> None:
    def conversation(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "text", "text": text}]}]

    embedded: list[int] = []
    hook = model._embed.register_forward_hook(lambda _, arguments, __: embedded.append(arguments[0].numel()))
    try:
        lengths = {characters: model.prompt(conversation("x" * characters), []).length for characters in (1, 2)}
        per_character = lengths[2] - lengths[1]
        longest = 1 + (model.context_length - 1 - lengths[1]) // per_character
        assert model.prompt(conversation("x" * longest), []).length < model.context_length
        embedded.clear()
        with pytest.raises(ContextLengthError, match=f"the model reads {model.context_length - 1}"):
            model.prompt(conversation("x" * (longest + 1)), [])
    finally:
        hook.remove()
    assert not embedded


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-40, MIN_TEMPERATURE])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_the_smallest_temperatures_take_the_likeliest_token(temperature: float, scale: float) -> None:
    logits = torch.tensor([-1.0, 0.999, 1.0, 0.5]) * scale
    generator = torch.Generator().manual_seed(0)
    options = Generation(1, temperature=temperature, top_p=0.9)
    assert {sample_token(logits, options, generator) for _ in range(20)} == {2}


def test_rotary_frequencies_keep_their_precision(tiny_llava: Path) -> None:
    half = EmbeddedModel(str(tiny_llava), dtype="bfloat16")._model
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in half.buffers()} == {torch.float32}


def test_cancelling_stops(model: EmbeddedModel) -> None:
    cancelled = threading.Event()
    prompt = model.prompt([{"role": "user", "content": [{"type": "text", "text": "x"}]}], [])
    pieces = model.generate(prompt, Generation(100, temperature=0), cancelled)
    next(pieces)
    cancelled.set()
    assert next(pieces, None) is None


@pytest.mark.parametrize("chunk", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello world", ("wor",), "hello "),
        ("hello world", ("xyz",), "hello world"),
        ("aab aaab", ("aaab",), "aab "),
        ("one two three", ("three", "two"), "one "),
        ("ends with st", ("stop",), "ends with st"),
        ("", ("a",), ""),
        ("abc", ("",), "abc"),
    ],
)
def test_stop_texts(text: str, stop: tuple[str, ...], expected: str, chunk: int) -> None:
    found = StopTextFilter(stop)
    pieces = []
    for end in range(chunk, len(text) + chunk, chunk):
        pieces.append(found.feed(text[:end]))
        if found.stopped:
            break
    assert "".join(pieces) + found.flush() == expected


def test_half_a_character_is_held_back() -> None:
    found = StopTextFilter(())
    assert found.feed("a\ufffd") == "a"
    assert found.feed("aé") == "é"
