import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from server.images.decode import decode_image
from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits
from tests.unit.server.images.files import encoded, noise, png

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000, min_side=4)


def decode(data: bytes, limits: ImageLimits = LIMITS) -> np.ndarray:
    return decode_image(data, limits)


def fault(data: bytes, limits: ImageLimits = LIMITS) -> Fault:
    with pytest.raises(ImageFaultError) as caught:
        decode(data, limits)
    return caught.value.fault


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP", "JPEG"])
def test_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = decode(encoded(noise(), kind, **options))
    assert pixels.shape == (20, 30, 3)
    assert pixels.dtype == np.uint8
    if kind in ("PNG", "BMP", "WEBP"):
        np.testing.assert_array_equal(pixels, np.asarray(noise()))


def test_exif_rotation_is_undone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise
    pixels = decode(encoded(noise(), "PNG", exif=exif))
    np.testing.assert_array_equal(pixels, np.rot90(np.asarray(noise()), -1))


def test_cmyk_becomes_rgb() -> None:
    pixels = decode(encoded(Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG"))
    assert pixels[4, 4, 0] > 200
    assert pixels[4, 4, 1:].max() < 80


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    pixels = decode(encoded(Image.fromarray(ramp)))
    np.testing.assert_array_equal(pixels[..., 0], (ramp >> 8).astype(np.uint8))


def test_sixteen_bit_colour() -> None:
    row = b"\0" + struct.pack(">3H", 65535, 32768, 0) * 8
    np.testing.assert_array_equal(decode(png(8, 8, zlib.compress(row * 8), depth=16))[0, 0], [255, 128, 0])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_on_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    options = {}
    if mode == "P":
        image = Image.new("P", (8, 8), 0)
        image.putpalette([10, 20, 30])
        options = {"transparency": 0}
    else:
        image = image.convert(mode)
    assert decode(encoded(image, **options)).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_other_modes_have_three_channels(mode: str) -> None:
    image = Image.fromarray(np.zeros((8, 8), np.uint16)) if mode == "I;16" else Image.new(mode, (8, 8))
    assert decode(encoded(image)).shape == (8, 8, 3)


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", b"BM"])
def test_what_is_not_an_image(data: bytes) -> None:
    assert fault(data) in (Fault.NOT_AN_IMAGE, Fault.DAMAGED)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "JPEG2000", "TGA", "PCX"])
def test_formats_that_are_not_allowed(kind: str) -> None:
    assert fault(encoded(noise(), kind)) == Fault.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9, 0.99])
def test_truncated_files(kind: str, part: float) -> None:
    data = encoded(noise(200, 200), kind)
    assert fault(data[: int(len(data) * part)]) in (Fault.NOT_AN_IMAGE, Fault.DAMAGED)


def test_damaged_pixels() -> None:
    data = bytearray(encoded(noise(200, 200)))
    data[len(data) // 2] ^= 0xFF
    assert fault(bytes(data)) == Fault.DAMAGED


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation(kind: str) -> None:
    frames = [noise(), noise().transpose(Image.Transpose.ROTATE_180)]
    assert fault(encoded(frames[0], kind, save_all=True, append_images=frames[1:])) == Fault.ANIMATED


def test_the_first_picture_of_a_photograph_with_others_behind_it() -> None:
    photograph, depth = noise(), Image.new("RGB", (30, 20), "red")
    data = encoded(photograph, "MPO", save_all=True, append_images=[depth])
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    np.testing.assert_array_equal(decode(data), decode(encoded(photograph, "JPEG")))


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (100, 3)])
def test_tiny_images(size: tuple[int, int]) -> None:
    assert fault(encoded(Image.new("RGB", size))) == Fault.TOO_SMALL


def test_files_that_are_too_large() -> None:
    assert fault(encoded(noise()), ImageLimits(100, 10**6, 4)) == Fault.TOO_MANY_BYTES
