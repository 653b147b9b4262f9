"""CLIP and SigLIP alone: equal to transformers, certified, without chat."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from typer.testing import CliRunner

from fs_runtime.encoders import FAMILIES, CheckpointError, load_encoder, load_family
from fs_runtime.engine import SmoothingEngine
from fs_runtime.smoothing.feature_map import FeatureMap
from fs_runtime.smoothing.smoother import Smoother
from server.models.loading import load_model
from server.settings.gateway import Settings
from tests.commands import app
from tests.integration.gateway import chat, data_url, picture, running_gateway

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION = SIZES | {"image_size": 56, "patch_size": 14}
PROCESSOR = {"size": {"height": 56, "width": 56}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.4] * 3}


def write(folder: Path, kind: str) -> Any:
    """A tiny random checkpoint; returns the model."""
    torch.manual_seed(0)
    text = SIZES | {"vocab_size": 99, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "clip":
        model: Any = CLIPModel(
            CLIPConfig(
                text_config=CLIPTextConfig(**text).to_dict(),
                vision_config=CLIPVisionConfig(**VISION).to_dict(),
                projection_dim=24,
            )
        )
    elif kind == "clip_vision_model":
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, projection_dim=24))
    elif kind == "siglip":
        model = SiglipModel(
            SiglipConfig(
                text_config=SiglipTextConfig(**text, projection_size=32).to_dict(),
                vision_config=SiglipVisionConfig(**VISION).to_dict(),
            )
        )
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**VISION))
    model.eval().save_pretrained(folder)
    processor = PROCESSOR | ({"crop_size": {"height": 56, "width": 56}} if "siglip" not in kind else {})
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.mark.parametrize("kind", ["clip", "clip_vision_model", "siglip", "siglip_vision_model"])
def test_tokens_and_image_embedding_equal_transformers(tmp_path: Path, kind: str) -> None:
    model = write(tmp_path, kind)
    encoder = load_encoder(str(tmp_path))
    assert encoder.family == kind
    x = torch.rand(3, 3, 56, 56)
    pixels = (x - 0.5) / 0.4
    with torch.inference_mode():
        if kind == "clip_vision_model":
            out = model(pixel_values=pixels)
            tokens, embedding = out.last_hidden_state, out.image_embeds
        else:
            out = getattr(model, "vision_model", model)(pixel_values=pixels)
            tokens = out.last_hidden_state
            embedding = model.visual_projection(out.pooler_output) if kind == "clip" else out.pooler_output
        ours = encoder.encode(x)
        torch.testing.assert_close(ours, tokens, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.project(ours, (4, 4))[:, 0], embedding, atol=1e-5, rtol=1e-4)
    image = encoder.prepare(np.asarray(picture(0, 90)))
    for stage in ("encoder", "projector"):
        smoother = Smoother(encoder)
        state = smoother.start(image, 0.1, 0, FeatureMap(stage))  # type: ignore[arg-type]
        products = smoother.step([(state, 3)])[0]
        assert products.tokens.shape[-1] == sum(r * c for r, c in encoder.token_grids(image.grid, stage))  # type: ignore[arg-type]
        assert encoder.payload(smoother.finish(state).embeddings, image)["image_embeds"].shape == (
            1,
            embedding.shape[-1],
        )


@pytest.mark.parametrize("stage", ["encoder", "projector"])
def test_a_server_certifies_and_refuses_to_chat(tmp_path: Path, stage: str) -> None:
    write(tmp_path, "clip")
    engine = SmoothingEngine(Smoother(load_encoder(str(tmp_path))), batch_size=16)
    try:
        with running_gateway(tmp_path, engine, language_model="none") as gateway:
            options = {"sigma": 0.1, "samples": 64, "stage": stage, "token_map": True}
            body = {"image": data_url(picture(0)), "robustness": options}
            answer = gateway.post("/v1/certify", body)
            assert answer.status_code == 200, answer.text
            rows = answer.json()["robustness"]["images"][0]["token_map"]["similarity"]
            assert [len(row) for row in rows] == ([1, 4, 4, 4, 4] if stage == "encoder" else [1])
            for stream in (False, True):
                refused = gateway.post("/v1/chat/completions", chat(picture(0), stream=stream))
                assert refused.status_code == 404
                assert refused.json()["error"]["code"] == "no_language_model"
                assert "/v1/certify" in refused.json()["error"]["message"]
            assert gateway.post("/v1/models", {}).status_code == 405
    finally:
        engine.close()


def test_a_language_model_that_the_family_does_not_have_is_refused_at_start(tmp_path: Path) -> None:
    write(tmp_path, "siglip_vision_model")
    with pytest.raises(CheckpointError, match=r"SigLIP encoder.*not served with --language-model vllm.*use none"):
        load_model(Settings(model=str(tmp_path), language_model="vllm"))


@pytest.mark.parametrize("family", [family for family in FAMILIES.values() if family.adapter is None])
def test_known_families_without_adapter_are_refused_with_the_reason(tmp_path: Path, family: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family.model_type}))
    with pytest.raises(CheckpointError) as refused:
        load_family(str(tmp_path))
    assert family.note
    assert family.note in str(refused.value)
    assert "Supported: LLaVA-1.5 (llava)" in str(refused.value)


def test_the_command_lists_families() -> None:
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["models", "--json"]).stdout)
    assert {row["model_type"]: row["served"] for row in listed} == {
        name: family.served for name, family in FAMILIES.items()
    }
    assert {"vLLM or embedded", "certify only", "not supported"} <= {row["served"] for row in listed}
    table = runner.invoke(app, ["models"])
    assert table.exit_code == 0
    assert "LLaVA-NeXT" in table.stdout
