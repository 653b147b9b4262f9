"""The denoisers to compare: purifiers, and classical ones that need no training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from fs_runtime.psm.network import PsmNetwork

FloatImage = NDArray[np.float32]

NOISY = "noisy"
BM3D = "BM3D"
WAVELET = "wavelet"
NON_LOCAL_MEANS = "non-local means"

# Descriptions in the tables.
DESCRIPTIONS = {
    NOISY: "nothing is done",
    BM3D: "colour BM3D (Mäkinen, Azzari, Foi 2020; package bm3d), opponent colours, profile np, σ given",
    WAVELET: "scikit-image denoise_wavelet: BayesShrink, soft, db1, in YCbCr, σ given",
    NON_LOCAL_MEANS: "scikit-image denoise_nl_means: patches of 5, distance 6, fast mode, h = 0.6 σ, σ given",
}


@dataclass(frozen=True, slots=True)
class NamedDenoiser:
    """One denoiser.

    Attributes:
        name: In tables.
        version: Identifies its results: a package's version, or fingerprint, dtype and device of a network.
        run: Maps a ``(H, W, 3)`` noisy image and its σ to an image of the same shape, with values maybe outside [0, 1].
    """

    name: str
    version: str
    run: Callable[[FloatImage, float], FloatImage]


def baselines() -> tuple[list[NamedDenoiser], list[str]]:
    """The denoisers that need no training, and a sentence for each that is not installed.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    from skimage.restoration import denoise_nl_means, denoise_wavelet

    skimage = f"scikit-image {version('scikit-image')}"

    def wavelet(noisy: FloatImage, sigma: float) -> FloatImage:
        found = denoise_wavelet(noisy, sigma=sigma, channel_axis=-1, convert2ycbcr=True, rescale_sigma=True)
        return np.asarray(found, dtype=np.float32)

    def non_local_means(noisy: FloatImage, sigma: float) -> FloatImage:
        found = denoise_nl_means(
            noisy, patch_size=5, patch_distance=6, h=0.6 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
        )
        return np.asarray(found, dtype=np.float32)

    rows = [
        NamedDenoiser(NOISY, "", lambda noisy, sigma: noisy),
        NamedDenoiser(WAVELET, skimage, wavelet),
        NamedDenoiser(NON_LOCAL_MEANS, skimage, non_local_means),
    ]
    try:
        from bm3d import bm3d_rgb
    except ModuleNotFoundError:
        return rows, [
            "BM3D is left out: pip install 'fs-serve[bm3d]'. Its licence allows non-commercial use only, so no other "
            "extra brings it"
        ]
    rows.append(
        NamedDenoiser(BM3D, f"bm3d {version('bm3d')}", lambda noisy, sigma: bm3d_rgb(noisy, sigma).astype(np.float32))
    )
    return rows, []


def purifier_denoiser(name: str, purifier: PsmNetwork) -> NamedDenoiser:
    """A purifier as a denoiser: on its device, one image at a time.

    Args:
        name: In tables.
        purifier: Loaded, in evaluation mode.
    """
    parameter = next(purifier.parameters())

    @torch.inference_mode()
    def run(noisy: FloatImage, sigma: float) -> FloatImage:
        x = torch.from_numpy(noisy).permute(2, 0, 1)[None].contiguous().to(parameter.device)
        purified = purifier(x, torch.tensor([sigma], device=parameter.device))
        found: FloatImage = purified[0].permute(1, 2, 0).float().cpu().numpy()
        return found

    dtype = str(parameter.dtype).removeprefix("torch.")
    return NamedDenoiser(name, f"{purifier.fingerprint} {dtype} {parameter.device.type}", run)
