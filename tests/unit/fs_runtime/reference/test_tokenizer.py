"""Any text has tokens, and any OpenAI-style conversation has the one form the model was trained on."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from fs_runtime.reference.tokenizer import SPECIAL_TOKENS, chat_template, train_tokenizer


@pytest.fixture(scope="module")
def processor(untrained_folder):
    return AutoProcessor.from_pretrained(untrained_folder)


@pytest.fixture(scope="module")
def render(processor):
    return lambda messages, **options: processor.apply_chat_template(messages, **options)


def text(words):
    return {"type": "text", "text": words}


IMAGE = {"type": "image"}


@given(words=st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_survives_the_round_trip(tokenizer, words):
    tokens = tokenizer.encode(words)
    if not any(special in words for special in SPECIAL_TOKENS):
        assert tokenizer.decode(tokens.ids, skip_special_tokens=False) == words


@pytest.mark.parametrize("words", ["", " ", "\x00", "日本語 🎉 ünïcödé", "a\n\n\tb  c", "\ud7ff\uffff", "x" * 5000])
def test_awkward_text_survives_in_transformers_too(processor, words):
    tokens = processor.tokenizer(words, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(tokens) == words


def test_training_the_tokenizer_twice_gives_the_same():
    assert train_tokenizer(100).to_str() == train_tokenizer(100).to_str()


def test_special_tokens_are_the_first(tokenizer):
    assert [tokenizer.id_to_token(index) for index in range(len(SPECIAL_TOKENS))] == list(SPECIAL_TOKENS)


def test_plain_strings(render):
    messages = [{"role": "user", "content": " Hello! "}]
    assert render(messages, add_generation_prompt=True) == "<|begin|><|user|>Hello!<|end|><|assistant|>"
    assert render(messages) == "<|begin|><|user|>Hello!<|end|>"


@pytest.mark.parametrize("kind", ["image", "image_url", "image_embeds"])
def test_images_come_before_the_text_in_whatever_order_they_were_sent(render, kind):
    image = {"type": kind}
    expected = "<|begin|><|user|><image>What is this?<|end|>"
    assert render([{"role": "user", "content": [text("What is this?"), image]}]) == expected
    assert render([{"role": "user", "content": [image, text("What is this?")]}]) == expected


def test_several_turns_images_and_a_system_prompt(render):
    messages = [
        {"role": "system", "content": "Be concise."},
        {"role": "user", "content": [IMAGE, IMAGE, text("Describe"), text("both images.")]},
        {"role": "assistant", "content": "A red circle."},
        {"role": "user", "content": [text("And this?"), IMAGE]},
    ]
    assert render(messages, add_generation_prompt=True) == (
        "<|begin|><|system|>Be concise.<|end|><|user|><image><image>Describe both images.<|end|>"
        "<|assistant|>A red circle.<|end|><|user|><image>And this?<|end|><|assistant|>"
    )


def test_other_roles_and_empty_content_are_tolerated(render):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "assistant", "content": None}]
    assert render(messages) == "<|begin|><|system|>Be brief.<|end|><|assistant|><|end|>"


@pytest.mark.parametrize("control", SPECIAL_TOKENS)
def test_text_cannot_forge_control_tokens(processor, render, control):
    prompt = render([{"role": "user", "content": [text(f"a{control}b")]}])
    ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    honest = processor.tokenizer(render([{"role": "user", "content": "ab"}]), add_special_tokens=False)["input_ids"]
    index = SPECIAL_TOKENS.index(control)
    assert ids.count(index) == honest.count(index)


def test_an_image_becomes_as_many_tokens_as_it_has_patches(processor):
    messages = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (90, 70))}, text("Hi")]}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert (inputs["input_ids"] == SPECIAL_TOKENS.index("<image>")).sum() == 64
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    assert inputs["input_ids"][0, 0] == SPECIAL_TOKENS.index("<|begin|>")
    assert (inputs["input_ids"] == SPECIAL_TOKENS.index("<|begin|>")).sum() == 1


def test_vllm_will_recognise_the_template_as_one_for_content_lists():
    # vLLM looks for a loop over message['content'] in the template; without it, it would insert placeholders itself.
    assert "for part in message['content']" in chat_template()
