"""A few steps of training lower the loss, repeat exactly, and leave a model that loads."""

from dataclasses import replace

import pytest
import torch

from fs_runtime.reference.evaluate import load_model
from fs_runtime.reference.model import load_weights, reference_config, save_reference
from fs_runtime.reference.train import TrainingSettings, _Batches, _Learner, settings_for, train_reference

SETTINGS = TrainingSettings(steps=24, vision_steps=8, batch_size=4, warmup=4, length=240, seed=5, workers=0)


@pytest.fixture(scope="module", autouse=True)
def _small_tokenizer(tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fs_runtime.reference.train.train_tokenizer", lambda: tokenizer)
        yield


def train(tokenizer, settings=SETTINGS, **options):
    config = reference_config(vision_layers=1, text_layers=1, width=32, vocabulary=tokenizer.get_vocab_size())
    reports = []
    model, _ = train_reference(settings, config, report=reports.append, report_every=8, **options)
    return model, reports


@pytest.fixture(scope="module")
def trained(tokenizer):
    return train(tokenizer)


def test_a_few_steps_lower_the_loss(trained):
    vision_only, joined, last = trained[1]
    assert [report.step for report in trained[1]] == [8, 16, 24]
    assert vision_only.accuracy != vision_only.accuracy  # nan: no answers were asked for yet
    assert last.loss < joined.loss - 0.5
    assert 0 <= last.accuracy <= 1


def test_training_again_gives_the_same_weights(trained, tokenizer):
    again, reports = train(tokenizer)
    assert [report.loss for report in reports] == [report.loss for report in trained[1]]
    for name, value in again.state_dict().items():
        assert torch.equal(value, trained[0].state_dict()[name]), name


def test_another_seed_gives_another_model(trained, tokenizer):
    other, _ = train(tokenizer, replace(SETTINGS, seed=6, steps=2, vision_steps=1))
    assert not torch.equal(other.lm_head.weight, trained[0].lm_head.weight)


def test_data_does_not_depend_on_how_many_processes_make_it(tokenizer):
    batches = _Batches(tokenizer, SETTINGS)
    assert len(batches) == SETTINGS.steps
    for step in (2, 10):
        first, second = batches[step], batches[step]
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(batches[10]["pixels"], batches[11]["pixels"])


def test_training_learns_from_clean_images(tokenizer):
    batch = _Batches(tokenizer, SETTINGS)[0]
    assert batch["pixels"].dtype == torch.uint8  # as drawn: nothing between the picture and the encoder adds noise


def test_going_on_starts_from_the_saved_weights(trained, tokenizer, tmp_path):
    save_reference(trained[0], tokenizer, tmp_path)
    settings = replace(SETTINGS, start_from=tmp_path, vision_steps=0, steps=1, learning_rate=0.0)
    model, _ = train(tokenizer, settings)
    for name, value in trained[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_the_model_is_saved_on_the_way(tokenizer, tmp_path):
    saved = []

    def save(model, used):
        save_reference(model, used, tmp_path)
        saved.append({name: value.clone() for name, value in model.state_dict().items()})

    settings = replace(SETTINGS, steps=4, vision_steps=1)
    model, _ = train(tokenizer, settings, save=save, save_every=2)
    assert len(saved) == 2
    load_weights(model, tmp_path)
    assert torch.equal(model.lm_head.weight, saved[1]["lm_head.weight"])
    assert load_model(tmp_path)[0].config.model_type == "llava"


@pytest.mark.timeout(120)
def test_a_time_limit_ends_training_early(tokenizer):
    _, reports = train(tokenizer, replace(SETTINGS, steps=100_000, time_limit=2.0))
    assert all(report.step < 10_000 for report in reports)


def test_learning_rates_rise_and_fall_in_both_phases(untrained):
    settings = TrainingSettings(steps=200, vision_steps=100, warmup=10, learning_rate=1.0, vision_rate=0.2)
    learner = _Learner(untrained, settings)
    rates = [learner.rates(step, step / 200) for step in range(200)]
    vision, language = zip(*rates, strict=True)
    assert language[:100] == (0.0,) * 100
    assert vision[0] == pytest.approx(0.1)
    assert max(vision) == pytest.approx(vision[9], rel=0.05)
    assert vision[99] == pytest.approx(0.2, abs=0.01)
    assert language[100] == pytest.approx(0.1, rel=0.01)
    assert max(language) == pytest.approx(1.0, rel=0.05)
    assert language[199] < 0.001
    assert vision[150] == pytest.approx(0.2 * language[150])


def test_a_gpu_gets_larger_batches():
    assert settings_for("cpu") == TrainingSettings()
    assert settings_for("cuda").batch_size > settings_for("cpu").batch_size
    assert settings_for("cuda").device == "cuda"
