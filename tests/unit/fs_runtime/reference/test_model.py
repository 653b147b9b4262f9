"""Saved models load in transformers directly, and in vLLM by the classic names."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from fs_runtime.reference.model import build_reference, load_weights, name_on_disk, reference_config

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def test_transformers_loads_every_weight_and_no_other(untrained, untrained_folder):
    loaded, info = AutoModelForImageTextToText.from_pretrained(untrained_folder, output_loading_info=True)
    assert not any(info.values()), info
    expected = untrained.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_layout_on_disk_is_the_classic_one(untrained_folder):
    assert {path.name for path in untrained_folder.iterdir()} == FILES
    with safe_open(untrained_folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float32}
    prefixes = {
        "vision_tower.vision_model.embeddings.",
        "vision_tower.vision_model.encoder.layers.",
        "multi_modal_projector.linear_1.",
        "language_model.model.layers.",
        "language_model.model.embed_tokens.",
        "language_model.lm_head.",
    }
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in names), prefix
    tops = ("vision_tower.vision_model.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head.")
    assert all(name.startswith(tops) for name in names)


def test_unknown_parameters_are_not_renamed_silently():
    with pytest.raises(ValueError, match=r"other\.weight"):
        name_on_disk("other.weight")


def test_features_are_the_last_layer_without_the_class_token(untrained):
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = untrained.model.get_image_features(pixels)
        hidden = untrained.model.vision_tower(pixels).last_hidden_state[:, 1:]
        expected = untrained.model.multi_modal_projector(hidden)
    torch.testing.assert_close(torch.stack(list(output.pooler_output)), expected)
    assert expected.shape == (2, 64, 64)


def test_the_image_processor_only_resizes_crops_and_normalises(untrained_folder):
    processor = AutoProcessor.from_pretrained(untrained_folder).image_processor
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (processor.image_mean, processor.image_std))
    expected = (torch.tensor(np.array(image)).permute(2, 0, 1) / 255 - mean) / std
    pixels = processor(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(torch.as_tensor(pixels), expected, atol=1e-5, rtol=1e-5)
    wide = processor(Image.new("RGB", (300, 100)), return_tensors="pt")["pixel_values"]
    assert wide.shape == (1, 3, 64, 64)


def test_weights_depend_on_the_seed_alone():
    config = reference_config(vision_layers=1, text_layers=1, width=32, vocabulary=300)
    torch.manual_seed(1)
    first = build_reference(5, config).state_dict()
    torch.manual_seed(2)
    second, other = build_reference(5, config).state_dict(), build_reference(6, config).state_dict()
    name = "lm_head.weight"
    assert torch.equal(first[name], second[name])
    assert not torch.equal(first[name], other[name])


def test_load_weights_restores_a_saved_model(untrained, untrained_folder):
    other = build_reference(99, untrained.config)
    assert not torch.equal(other.lm_head.weight, untrained.lm_head.weight)
    load_weights(other, untrained_folder)
    for name, value in untrained.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_configuration_says_what_vllm_reads(untrained_folder):
    config = json.loads((untrained_folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["text_config"]["architectures"] == ["LlamaForCausalLM"]
    assert config["image_token_index"] == 6
    assert config["vision_feature_layer"] == -1
    assert config["vision_feature_select_strategy"] == "default"
