from pathlib import Path
from typing import Any

import pytest
import yaml

from server.models.configured import ConfiguredModels
from server.models.file import ModelsFileError, parse_models, read_models
from server.settings.gateway import Settings

ORDINARY = {"samples": 99, "sigma": 0.2, "psm": "/psm/of/another", "revision": "abc", "vllm_model": "theirs"}


def parsed(*entries: dict[str, Any], **settings: Any) -> dict[str, Settings]:
    return parse_models(yaml.safe_dump({"models": list(entries)}).encode(), Settings(**settings))


def test_what_an_entry_does_not_say_comes_from_the_ordinary_settings() -> None:
    models = parsed({"name": "b", "model": "x/y", "samples": 5}, {"name": "a", "model": "reference"}, **ORDINARY)
    assert list(models) == ["b", "a"]
    assert [model.model_name for model in models.values()] == ["b", "a"]
    assert (models["b"].samples, models["b"].sigma, models["a"].samples) == (5, 0.2, 99)
    assert models["b"].checkpoint == "x/y"


def test_what_belongs_to_one_checkpoint_is_not_taken_over() -> None:
    ordinary = {**ORDINARY, "vllm_urls": ["http://a:1", "http://b:2"], "language_model": "vllm"}
    model = parsed({"name": "m", "model": "x/y", "vllm_url": "http://c:3/"}, **ordinary)["m"]
    assert (model.psm, model.revision, model.vllm_model) == ("auto", None, None)
    assert model.vllm_addresses == ["http://c:3"]
    with pytest.raises(ModelsFileError, match="model m is to be answered by vLLM: give its vllm_url or vllm_urls"):
        parsed({"name": "m", "model": "x/y"}, **ordinary)


def test_equal_entries_make_equal_settings_and_others_do_not() -> None:
    entry = {"name": "m", "model": "x/y", "vllm_urls": "http://a:1, http://b:2"}
    assert parsed(entry)["m"] == parsed(entry)["m"]
    assert parsed(entry)["m"] != parsed({**entry, "samples": 7})["m"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: []", "at least 1 item"),
        ("{}", "models: Field required"),
        ("models: [{name: a}]", "models.0.model: Field required"),
        ("models: [{model: a}]", "models.0.name: Field required"),
        ("models: [{name: a b, model: x}]", "models.0.name"),
        ("models: [{name: a, model: x, smaples: 3}]", "models.0.smaples: Extra inputs"),
        ("models: [{name: a, model: x, requests_per_minute: 3}]", "requests_per_minute"),
        ("models: [{name: a, model: x, served_model_name: b}]", "leave served_model_name out"),
        ("models: [{name: a, model: x}, {name: a, model: y}]", "model a appears twice"),
        ("models: [{name: a, model: x, samples: 9999}]", "model a: samples 9999 is above max_samples"),
        ("models: [{name: a, model: x, min_fidelity: 0.96}]", "model a: min_fidelity 0.96 is above 0.9462, the most"),
        ("models: [{name: a, model: x, model: y}]", "'model' appears twice"),
        ("models: [{name: a, model: x, vllm_url: 'http://u:hidden@[b'}]", "models.0.vllm_url"),
        ("models: [", "not valid YAML in line 1"),
        ("models: [{name: a, model: x, vllm_url: 'http://a', vllm_urls: ['http://b']}]", "not both"),
    ],
)
def test_files_that_cannot_be_used_say_why_and_not_what_they_hold(text: str, words: str) -> None:
    with pytest.raises(ModelsFileError) as refused:
        parse_models(text.encode(), Settings())
    assert words in str(refused.value)
    assert "hidden" not in str(refused.value)


def test_a_wrong_file_is_found_at_start(tmp_path: Path) -> None:
    with pytest.raises(ModelsFileError, match=r"models\.yaml cannot be read"):
        read_models(tmp_path / "models.yaml", Settings())
    (tmp_path / "models.yaml").write_text("models: 3")
    with pytest.raises(ModelsFileError, match="models: Input should be a valid list"):
        ConfiguredModels(Settings(models_file=tmp_path / "models.yaml"))
