"""The purifiers that ship, on photographs they were not trained on."""

import math

import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor

from fs_runtime.preprocessing.resize import ResizeCrop
from fs_runtime.psm.network import PsmNetwork
from fs_runtime.psm.shipped import shipped_purifiers
from fs_runtime.psm.storage import load_purifier


@pytest.fixture(scope="module")
def purifier() -> PsmNetwork:
    return load_purifier(shipped_purifiers()["small"])[0]


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    read = ResizeCrop(224, (224, 224), "bicubic")
    return torch.stack(
        [torch.from_numpy(read(load_sample_image(f"{name}.jpg")).pixels) for name in ("china", "flower")]
    )


def psnr(purifier: PsmNetwork, clean: Tensor, sigma: float, told: float | None = None) -> float:
    """Mean PSNR in dB."""
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))
    purified = purifier(noisy, torch.full((len(clean),), told or sigma)).clamp(0, 1)
    return float(-10 * (purified - clean).square().mean(dim=(1, 2, 3)).log10().mean())


# What `fs-serve evaluate purifier` measures for colour BM3D on these two at 224 x 224.
@pytest.mark.parametrize(("sigma", "bm3d"), [(0.25, 26.07), (0.1, 30.40)])
def test_as_good_as_bm3d(purifier: PsmNetwork, photographs: Tensor, sigma: float, bm3d: float) -> None:
    assert psnr(purifier, photographs, sigma) > bm3d - 0.25  # one draw of the noise of two pictures


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.25, 0.5, 1.0])
def test_it_helps_at_every_level_it_was_trained_for(purifier: PsmNetwork, photographs: Tensor, sigma: float) -> None:
    assert psnr(purifier, photographs, sigma) > -20 * math.log10(sigma) + 5


@pytest.mark.parametrize(("told", "worse"), [(0.2, 3.0), (0.3, 1.5), (0.5, 4.0), (0.125, 8.0)])
def test_a_wrong_noise_level_does_less_well_and_no_harm(
    purifier: PsmNetwork, photographs: Tensor, told: float, worse: float
) -> None:
    right = psnr(purifier, photographs, 0.25)
    wrong = psnr(purifier, photographs, 0.25, told)
    assert right - worse < wrong < right
    assert wrong > -20 * math.log10(0.25) + 2  # better than nothing


def test_it_says_the_same_every_time_and_in_any_batch(purifier: PsmNetwork, photographs: Tensor) -> None:
    sigma = torch.tensor([0.25, 0.25])
    once = purifier(photographs, sigma)
    assert torch.equal(purifier(photographs, sigma), once)
    torch.testing.assert_close(purifier(photographs[:1], sigma[:1]), once[:1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("side", [(223, 101), (17, 30)])
def test_any_size(purifier: PsmNetwork, photographs: Tensor, side: tuple[int, int]) -> None:
    cut = photographs[..., : side[0], : side[1]]
    assert psnr(purifier, cut, 0.25) > -20 * math.log10(0.25) + 4


def test_half_precision_changes_little(photographs: Tensor) -> None:
    exact, half = (
        load_purifier(shipped_purifiers()["small"], dtype=dtype)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    assert psnr(half, photographs, 0.25) > psnr(exact, photographs, 0.25) - 0.05
