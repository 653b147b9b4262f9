import numpy as np
import pytest
import torch
from scipy import stats

from fs_runtime.smoothing.noise import NOISE_VERSION, NoiseStream, fresh_seed
from fs_runtime.smoothing.normal_tail import TAIL_START

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


def test_nor_do_they_where_the_tail_is_replaced_in_several_goes() -> None:
    def drawn(*sizes: int) -> torch.Tensor:
        stream, parts = NoiseStream(5, CPU), []
        for size in sizes:
            parts.append(torch.empty(size, 3, 200, 200))
            stream.draw(parts[-1])
            stream.rewind(stream.position())
        return torch.cat(parts)

    whole = drawn(7)
    assert int((whole.abs() > TAIL_START).sum()) > 100
    assert torch.equal(whole, drawn(1, 4, 0, 2))


@pytest.mark.parametrize(
    ("seed", "first", "last"),
    [
        (5, [-0.35901087522506714, -0.162435382604599, -1.8952714204788208], -0.7381154894828796),
        (2**63 + 7, [-0.3807656466960907, 0.1735672950744629, -0.4419354200363159], 0.8543744683265686),
    ],
)
def test_the_first_version_draws_what_it_always_drew(seed: int, first: list[float], last: float) -> None:
    """The numbers were written down before there was a second one: older receipts are made of them."""
    out = torch.empty(2, 3, 8, 8)
    NoiseStream(seed, CPU, version=1).draw(out)
    assert out.flatten()[:3].tolist() == pytest.approx(first, rel=1e-6)
    assert float(out.flatten()[-1]) == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize("version", [0, NOISE_VERSION + 1])
def test_an_unknown_version_is_refused(version: int) -> None:
    with pytest.raises(ValueError, match="version"):
        NoiseStream(5, CPU, version)


def test_draws_are_standard_normal() -> None:
    values = draws(11, 500).numpy().ravel()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    pairs = values.reshape(500, -1)
    assert abs(np.corrcoef(pairs[:-1].ravel(), pairs[1:].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("other", [6, 5 + 2**32, 5 + 2**63])
def test_every_bit_of_the_seed_counts(other: int) -> None:
    assert not torch.equal(draws(5, 2), draws(other, 2))


@pytest.mark.parametrize("version", [1, 2])
def test_rewind_gives_the_same_draws_again(version: int) -> None:
    stream = NoiseStream(3, CPU, version)
    a, b = torch.empty(2, 3, 150, 150), torch.empty(2, 3, 150, 150)
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_replaces_the_same_tail_however_the_draws_are_batched() -> None:
    device = torch.device("cuda")

    def drawn(version: int, *sizes: int) -> torch.Tensor:
        stream, parts = NoiseStream(5, device, version), []
        for size in sizes:
            parts.append(torch.empty(size, 3, 200, 200, device=device))
            stream.draw(parts[-1])
            stream.rewind(stream.position())
        return torch.cat(parts)

    plain, whole = drawn(1, 7), drawn(2, 7)
    beyond = plain.abs() > TAIL_START
    assert int(beyond.sum()) > 100
    assert torch.equal(plain[~beyond], whole[~beyond])
    assert torch.equal(plain[beyond].sign(), whole[beyond].sign())
    assert not torch.any(plain[beyond] == whole[beyond])
    assert torch.equal(whole, drawn(2, 1, 4, 2))
