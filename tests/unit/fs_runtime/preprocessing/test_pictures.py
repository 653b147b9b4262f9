"""Colours, rotation and transparency of pictures."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from fs_runtime.preprocessing.pictures import upright_rgb
from tests.unit.server.images.files import encoded, noise, swapped_profile


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return upright_rgb(image)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
GREEN_AND_RED = np.array([[[255, 0, 0]] * 8, [[0, 255, 0]] * 8] * 4, np.uint8)


def test_an_embedded_profile_is_applied() -> None:
    converted = pixels(encoded(Image.fromarray(GREEN_AND_RED), icc_profile=swapped_profile()))
    assert converted[0, 0].tolist() == pytest.approx([0, 0, 255], abs=3)
    assert converted[1, 0].tolist() == pytest.approx([0, 255, 0], abs=3)


def test_the_profile_of_srgb_changes_nothing() -> None:
    np.testing.assert_array_equal(pixels(encoded(noise(), icc_profile=SRGB)), np.asarray(noise()))


@pytest.mark.parametrize("kind", ["RGBA", "P"])
def test_profiles_with_transparency_and_palettes(kind: str) -> None:
    image = Image.fromarray(GREEN_AND_RED)
    if kind == "RGBA":
        image.putalpha(Image.new("L", image.size, 255))
        image.putpixel((0, 0), (255, 0, 0, 0))
    converted = pixels(encoded(image.convert(kind), icc_profile=swapped_profile()))
    assert converted[0, 4].tolist() == pytest.approx([0, 0, 255], abs=3)
    if kind == "RGBA":
        assert converted[0, 0].tolist() == [255, 255, 255]


def test_every_orientation() -> None:
    upright = noise()
    for value, turn in {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.items():
        exif = Image.Exif()
        exif[0x0112] = value
        np.testing.assert_array_equal(pixels(encoded(upright, exif=exif)), np.asarray(upright.transpose(turn)))


GARBAGE = np.random.default_rng(3).bytes(3000)


@pytest.mark.parametrize("profile", [GARBAGE, LAB, b"", SRGB[:200], SRGB[:128] + GARBAGE], ids=range(5))
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_a_profile_that_does_not_fit_counts_as_absent(profile: bytes, mode: str) -> None:
    image = noise().convert(mode)
    np.testing.assert_array_equal(pixels(encoded(image, icc_profile=profile)), pixels(encoded(image)))


@pytest.mark.parametrize(
    "exif",
    [GARBAGE, b"Exif\0\0" + GARBAGE, b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + GARBAGE],
)
@pytest.mark.filterwarnings("ignore")
def test_exif_that_is_garbage_counts_as_absent(exif: bytes) -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        expected = pixels(encoded(noise(), kind))
        np.testing.assert_array_equal(pixels(encoded(noise(), kind, exif=exif)), expected)


def test_cmyk_with_and_without_a_profile() -> None:
    image = Image.new("CMYK", (9, 9), (0, 255, 255, 0))
    for profile in (b"", SRGB, GARBAGE):
        red = pixels(encoded(image, "JPEG", icc_profile=profile))[4, 4]
        assert red[0] > 200
        assert red[1:].max() < 80
