"""Draws are shared only where they are draws of the same function at the same image."""

from pathlib import Path

import numpy as np

from fs_runtime.encoders import VisionEncoder, load_encoder
from fs_runtime.engine.cache.key import CacheKey
from fs_runtime.engine.cache.origins import draws_name
from fs_runtime.smoothing.noise import NOISE_VERSION
from fs_runtime.smoothing.smoother import Smoother
from tests.asked import asked
from tests.integration.families.qwen import QWEN2_VL


def test_replicas_that_read_an_image_at_other_resolutions_share_no_draws(tmp_path: Path) -> None:
    """The fingerprint is the checkpoint's and the digest the sent image's: neither tells of the cap."""
    QWEN2_VL.build(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 256, (224, 168, 3), dtype=np.uint8)
    request, pixels = asked(image, 0.25, 8, 0.999)
    keys, sizes = [], []
    for cap in (None, None, 64 * 64):
        encoder = load_encoder(str(tmp_path / "model"))
        if cap is not None:
            encoder.cap(cap)
        keys.append(CacheKey.of(request, Smoother(encoder), pixels=pixels))
        sizes.append(encoder.prepare(image).pixels.shape)
    assert keys[0] == keys[1]
    assert keys[0].parts() == keys[1].parts()  # what the shared cache makes its names of
    assert sizes[0] != sizes[2]
    assert keys[0].weights == keys[2].weights
    assert keys[0] != keys[2]
    assert keys[0].parts() != keys[2].parts()


def test_replicas_that_leave_the_spread_out_of_other_images_share_no_draws(encoder: VisionEncoder) -> None:
    """They would split α differently over the same draws."""
    smoother, image = Smoother(encoder), np.zeros((28, 28, 3), np.uint8)
    for spectral in (True, False):
        request, pixels = asked(image, 0.25, 8, 0.999, spectral=spectral)
        low, high = (CacheKey.of(request, smoother, limit, pixels) for limit in (2**20, 2**30))
        assert (low == high) is (low.parts() == high.parts()) is not spectral


def test_draws_of_another_version_of_the_noise_are_others(encoder: VisionEncoder) -> None:
    smoother = Smoother(encoder)
    request, pixels = asked(np.zeros((28, 28, 3), np.uint8), 0.25, 8, 0.999)
    now, before = (CacheKey.of(request, each, pixels=pixels) for each in (smoother, smoother.with_noise(1)))
    assert smoother.noise_version == NOISE_VERSION
    assert now != before
    assert now.parts() != before.parts()
    assert draws_name(now) != draws_name(before)
