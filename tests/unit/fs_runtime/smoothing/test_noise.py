import numpy as np
import pytest
import torch
from scipy import stats

from fs_runtime.smoothing.noise import NoiseStream, fresh_seed

CPU = torch.device("cpu")


def draws(seed: int, *sizes: int) -> torch.Tensor:
    stream = NoiseStream(seed, CPU)
    parts = []
    for size in sizes:
        out = torch.empty(size, 3, 8, 8)
        stream.draw(out)
        parts.append(out)
    return torch.cat(parts)


def test_draws_do_not_depend_on_how_they_are_batched() -> None:
    assert torch.equal(draws(5, 7), draws(5, 1, 4, 2))


def test_draws_are_standard_normal() -> None:
    values = draws(11, 500).numpy().ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    pairs = values.reshape(500, -1)
    assert abs(np.corrcoef(pairs[:-1].ravel(), pairs[1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("other", [6, 5 + 2**32, 5 + 2**63])
def test_every_bit_of_the_seed_counts(other: int) -> None:
    assert not torch.equal(draws(5, 2), draws(other, 2))


def test_rewind_gives_the_same_draws_again() -> None:
    stream = NoiseStream(3, CPU)
    a, b = torch.empty(2, 3, 8, 8), torch.empty(2, 3, 8, 8)
    position = stream.position()
    stream.draw(a)
    stream.rewind(position)
    stream.draw(b)
    assert torch.equal(a, b)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="seed"):
        NoiseStream(seed, CPU)


def test_fresh_seeds_differ() -> None:
    assert len({fresh_seed() for _ in range(100)}) == 100
