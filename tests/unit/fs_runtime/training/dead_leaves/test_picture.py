import numpy as np
import pytest

from fs_runtime.training.dead_leaves import VERSION, contact_sheet, leaves_picture
from fs_runtime.training.dead_leaves.colours import to_rgb
from fs_runtime.training.dead_leaves.shapes import VERTICES, Leaves, paint, sample_leaves
from fs_runtime.training.dead_leaves.textures import sample_fields


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=-1)


def test_a_seed_gives_one_picture() -> None:
    one, again, other = (leaves_picture(rng(seed), 48) for seed in (1, 1, 2))
    assert one.shape == (48, 48, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_version_stands_for_the_pictures() -> None:
    """A change of the pictures of a seed needs a new VERSION, which cards record; then update this mean."""
    mean = np.mean([leaves_picture(rng(seed), 64).mean() for seed in range(8)])
    assert (VERSION, round(float(mean), 1)) == (2, pytest.approx(MEAN, abs=0.5))


MEAN = 135.4


def test_leaves_in_front_hide_those_behind() -> None:
    outlines = np.stack([disc(16, 16, 12), disc(16, 16, 5)]).astype(np.float32)
    leaves = Leaves(
        np.full((2, 2), 16, np.float32), np.array([12, 5], np.float32), outlines, np.arange(2, dtype=np.int32)
    )
    numbers = paint(leaves, 32)
    assert numbers[16, 16] == 2
    assert numbers[16, 25] == 1
    assert numbers[0, 0] == 0
    assert (numbers > 0).sum() == pytest.approx(np.pi * 12**2, rel=0.1)
    assert (numbers == 2).sum() == pytest.approx(np.pi * 5**2, rel=0.2)


def test_radii_follow_the_power_law_between_their_bounds() -> None:
    """The density r⁻³ makes the share of radii above r fall with r⁻²."""
    leaves = sample_leaves(rng(), 2000, 8.0, 4.0, 64.0)
    radii = leaves.radii
    assert radii.min() >= 4
    assert radii.max() <= 64
    inside = ((leaves.centres > 0) & (leaves.centres < 2000)).all(axis=1)
    share = (radii[inside] > 8).mean()
    expected = (8.0**-2 - 64.0**-2) / (4.0**-2 - 64.0**-2)
    assert share == pytest.approx(expected, abs=4 * np.sqrt(expected / inside.sum()))


def test_the_hindmost_layer_covers_nearly_everything() -> None:
    numbers = paint(sample_leaves(rng(), 256, 4.0, 3.0, 80.0), 256)
    assert (numbers > 0).mean() > 0.9


def test_textures_have_unit_variance_and_many_scales() -> None:
    fields = sample_fields(rng(), 128, 12)
    assert fields.shape == (12, 128, 128)
    assert np.allclose(fields.mean(axis=(1, 2)), 0, atol=1e-3)
    assert np.allclose(fields.std(axis=(1, 2)), 1, atol=1e-3)
    roughness = np.abs(np.diff(fields, axis=2)).mean(axis=(1, 2))
    assert roughness.max() > 3 * roughness.min()


def test_grey_has_no_colour() -> None:
    assert np.allclose(to_rgb(np.array([[0.3, 0, 0]], np.float32)), 0.3)


def test_pictures_are_alike_at_all_scales_as_photographs_are() -> None:
    """Power falls about with the square of the frequency; that of noise not at all, of one smooth shape far faster."""
    power = np.zeros(64)
    for seed in range(12):
        grey = leaves_picture(rng(seed), 128).mean(axis=2)
        spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * np.hanning(128)[:, None] * np.hanning(128))) ** 2
        radius = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128))) * 128
        bins = np.bincount(radius.astype(int).ravel(), spectrum.ravel()) / np.bincount(radius.astype(int).ravel())
        power += bins[:64] / bins[1:64].sum()
    frequency = np.arange(4, 48)
    slope = np.polyfit(np.log(frequency), np.log(power[4:48]), 1)[0]
    assert -3.2 < slope < -1.5


def test_contact_sheet() -> None:
    assert contact_sheet(0, rows=2, columns=3, side=32).shape == (64, 96, 3)
