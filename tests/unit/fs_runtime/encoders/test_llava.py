import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from fs_runtime.encoders import CheckpointError, VisionEncoder, load_encoder
from fs_runtime.encoders.checkpoint import Checkpoint


def reference_features(folder: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Selected tower features and projected embeddings by plain transformers code."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    config = model.config
    with torch.inference_mode():
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        layers = config.vision_feature_layer
        chosen = torch.cat([states[i] for i in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        if config.vision_feature_select_strategy == "default":
            chosen = chosen[:, 1:]
        return chosen, model.model.multi_modal_projector(chosen)


def normalised(folder: Path, x: torch.Tensor) -> torch.Tensor:
    config = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    return (x - mean) / std


def variant(source: Path, folder: Path, **changes: object) -> Path:
    """The checkpoint with other values in its config.json."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"vision_feature_layer": -1},
        {"vision_feature_layer": 2, "vision_feature_select_strategy": "full"},
        {"vision_feature_layer": 0},
    ],
)
def test_features_and_embeddings_equal_transformers(
    tiny_llava: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = variant(tiny_llava, tmp_path / "model", **changes)
    encoder = load_encoder(str(folder))
    x = torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    features, embeddings = reference_features(folder, normalised(folder, x))
    with torch.inference_mode():
        ours = encoder.encode(x)
        torch.testing.assert_close(ours, features, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder.project(ours[1], (4, 4)), embeddings[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_every_layout_and_tower_that_transformers_saves(tmp_path: Path, tiny_llava: Path, tower: str) -> None:
    """As transformers 5 saves it: `model.` in front, no `vision_model.`; several layers feed one projector."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = (CLIPVisionConfig if tower == "clip" else SiglipVisionConfig)(**sizes, image_size=56, patch_size=14)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**sizes, vocab_size=120),
        vision_feature_layer=[1, -1],
        vision_feature_select_strategy="default" if tower == "clip" else "full",
        image_token_index=4,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    shutil.copy(tiny_llava / "preprocessor_config.json", tmp_path)
    encoder = load_encoder(str(tmp_path))
    x = torch.rand(2, 3, 56, 56)
    features, embeddings = reference_features(tmp_path, normalised(tmp_path, x))
    assert features.shape == (2, 16, 64)
    with torch.inference_mode():
        torch.testing.assert_close(encoder.encode(x), features, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.project(features[0], (4, 4)), embeddings[0], atol=1e-5, rtol=1e-4)


def test_language_weights_are_never_read(tiny_llava: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llava, folder)
    language_only = [f for f in folder.glob("*.safetensors") if all(k.startswith("language") for k in load_file(f))]
    assert language_only, "the fixture should have a shard without vision weights"
    for file in language_only:
        file.write_bytes(b"not a tensor file")
    assert load_encoder(str(folder)).fingerprint == load_encoder(str(tiny_llava)).fingerprint


def test_fingerprint_changes_with_any_weight_and_not_with_precision(tiny_llava: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llava, folder)
    file = next(f for f in folder.glob("*.safetensors") if "multi_modal_projector.linear_2.bias" in load_file(f))
    weights = load_file(file)
    weights["multi_modal_projector.linear_2.bias"][0] += 1e-3
    save_file(weights, file)
    original = load_encoder(str(tiny_llava)).fingerprint
    assert original.startswith("sha256:")
    assert load_encoder(str(folder)).fingerprint != original
    assert load_encoder(str(tiny_llava), dtype="bfloat16").fingerprint == original


def test_prepare_then_payload(encoder: VisionEncoder, picture: NDArray[np.uint8]) -> None:
    image = encoder.prepare(picture)
    assert image.pixels.shape == (3, 56, 56)
    assert image.grid == (4, 4)
    with torch.inference_mode():
        embeddings = encoder.project(encoder.encode(image.pixels[None])[0], image.grid)
    payload = encoder.payload(embeddings, image)
    assert payload["image_embeds"].shape == (16, 64)
    assert payload["image_embeds"].dtype == np.float32


@pytest.mark.parametrize("broken", ["width", "count", "nan"])
def test_payload_that_could_stop_vllm_is_refused(
    encoder: VisionEncoder, picture: NDArray[np.uint8], broken: str
) -> None:
    shape = {"width": (16, 63), "count": (15, 64)}.get(broken, (16, 64))
    embeddings = torch.zeros(shape)
    if broken == "nan":
        embeddings[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"shape|finite"):
        encoder.payload(embeddings, encoder.prepare(picture))


def test_control_tokens_come_from_the_tokenizer(encoder: VisionEncoder) -> None:
    assert encoder.control_tokens == ("<image>",)


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        ("family", "Supported: LLaVA-1.5"),
        ("architecture", "convert it to LlavaForConditionalGeneration"),
        ("missing weight", "lacks 1 weights"),
        ("shape", "has shape"),
        ("layer", "does not exist"),
        ("no processor", "no preprocessor_config"),
        ("no config", "no config.json"),
        ("bad json", "not valid JSON"),
    ],
)
def test_unusable_checkpoints_are_refused_with_the_reason(
    tiny_llava: Path, tmp_path: Path, breakage: str, message: str
) -> None:
    changes: dict[str, object] = {
        "family": {"model_type": "gpt2"},
        "layer": {"vision_feature_layer": -9},
        "architecture": {"architectures": ["LlavaLlamaForCausalLM"]},
    }.get(breakage, {})
    folder = variant(tiny_llava, tmp_path / "model", **changes)
    if breakage in ("missing weight", "shape"):
        file = next(f for f in folder.glob("*.safetensors") if "multi_modal_projector.linear_1.bias" in load_file(f))
        weights = load_file(file)
        bias = weights.pop("multi_modal_projector.linear_1.bias")
        if breakage == "shape":
            weights["multi_modal_projector.linear_1.bias"] = bias[:-1].clone()
        save_file(weights, file)
        if breakage == "missing weight":
            index = json.loads((folder / "model.safetensors.index.json").read_text())
            del index["weight_map"]["multi_modal_projector.linear_1.bias"]
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if breakage == "no processor":
        (folder / "preprocessor_config.json").unlink()
        (folder / "processor_config.json").unlink()
    if breakage == "no config":
        (folder / "config.json").unlink()
    if breakage == "bad json":
        (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=message):
        load_encoder(str(folder))


def test_a_folder_that_does_not_exist_is_not_looked_up_on_the_hub() -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_encoder("/no/such/folder")


def test_without_network_what_is_not_in_the_cache_does_not_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downloaded snapshot holds all files of the model; those that it lacks are asked for all the same."""
    folder = tmp_path / "models--some--model"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text('{"model_type": "llava"}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    checkpoint = Checkpoint("some/model")
    assert checkpoint.config() == {"model_type": "llava"}
    assert checkpoint.json("chat_template.json") == {}
    with pytest.raises(CheckpointError, match="reachable"):
        Checkpoint("some/other").config()
