"""The comparison of betting schemes, against closed forms and on the features of the shipped model."""

import numpy as np
import pytest

from fs_runtime.benchmarks.bets import (
    DEFAULT,
    SCHEMES,
    Law,
    feature_laws,
    measure_costs,
    measure_deficits,
    synthetic_laws,
)
from fs_runtime.certificate import NormConfidenceSequence
from fs_runtime.cli.bench.bets import cost_table, deficit_tables
from fs_runtime.loading.engine import load_smoother
from fs_runtime.reference import reference_model_path


def test_deficits_of_samples_that_do_not_vary() -> None:
    law = Law("constant", np.full((128, 2), 0.9), np.full(2, 0.9))
    found = {
        (row.scheme, row.alpha, row.samples): row.deficit
        for row in measure_deficits(law, [0.05, 0.001], [64, 128], print)
    }
    assert len(found) == (1 + len(SCHEMES)) * 4
    for alpha in (0.05, 0.001):
        for n in (64, 128):
            best = 1.9 - 1.9 * alpha ** (1 / n)
            assert found["all in", alpha, n] == pytest.approx(best, rel=2e-3)
            sequence = NormConfidenceSequence(1 - alpha)
            sequence.update(np.full(n, 0.9))
            assert found[DEFAULT, alpha, n] == pytest.approx(0.9 - float(sequence.lower))
            assert all(found[scheme, alpha, n] >= 0.995 * best for scheme in SCHEMES)
    tables = list(deficit_tables([*measure_deficits(law, [0.05], [64], print)]))
    assert [table.row_count for table in tables] == [1 + len(SCHEMES)] * 2


def test_what_is_never_certified_has_the_whole_norm_as_its_deficit() -> None:
    law = Law("coin", np.tile([1.0, -1.0], 16)[:, None], np.array([0.3]))
    assert {row.deficit for row in measure_deficits(law, [0.001], [32], print)} == {0.3}


def test_synthetic_laws_have_the_mean_they_name() -> None:
    for law in synthetic_laws(4000, 20):
        error = law.samples.std() / np.sqrt(law.samples.size)
        assert abs(law.samples.mean() - law.norm[0]) < 4 * error, law.name


def test_features_of_the_reference_model() -> None:
    smoother = load_smoother(str(reference_model_path()), device="cpu")
    images = {str(seed): np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in (0, 1)}
    image, token = feature_laws(smoother, images, 0.1, 70)
    assert image.samples.shape == (70, 2)
    assert token.samples.shape == (70, 8)
    assert token.norm.shape == (8,)
    for law in (image, token):
        assert np.all(np.abs(law.samples[35:].mean(axis=0) - law.norm) < 0.05)


def test_costs() -> None:
    costs = measure_costs()
    assert [cost.streams for cost in costs if cost.scheme == DEFAULT] == [1, 64, 576]
    assert all(cost.seconds > 0 for cost in costs)
    default = costs[0]
    assert default.seconds < 2e-3  # what an image's certificate may cost
    assert default.state_bytes <= 128  # for each stream, however many samples
    assert cost_table(costs).row_count == len(costs)
