import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from server.errors import ApiError
from server.images import ImageLimits, bytes_of_data_url, decode_image

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=1_000_000, min_side=4)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 20, width: int = 30, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def decode(data: bytes, limits: ImageLimits = LIMITS) -> np.ndarray:
    return decode_image(data, limits, "image")


def failure(data: bytes, limits: ImageLimits = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode(data, limits)
    assert caught.value.param == "image"
    return caught.value


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
    header = struct.pack(">2I5B", 8, 8, 16, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * 8)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode(png)[0, 0], [255, 128, 0])


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


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>"])
def test_what_is_not_an_image_is_415_or_damaged(data: bytes) -> None:
    error = failure(data)
    assert (error.status, error.code) in {(415, "not_an_image"), (400, "invalid_image")}
    assert not data.startswith(b"\x89PNG") or error.status in (400, 415)


def test_formats_that_are_not_allowed_are_415() -> None:
    assert failure(encoded(noise(), "TIFF")).status == 415
    assert failure(encoded(noise(), "PPM")).status == 415


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated_files_are_400(kind: str, part: float) -> None:
    data = encoded(noise(200, 200), kind)
    error = failure(data[: int(len(data) * part)])
    assert error.status == 400 or (error.status == 415 and kind == "WEBP")
    assert error.code in ("invalid_image", "not_an_image")


def test_damaged_pixels_are_400() -> None:
    data = bytearray(encoded(noise(200, 200)))
    data[len(data) // 2] ^= 0xFF
    assert failure(bytes(data)).code == "invalid_image"


def test_animation_is_400() -> None:
    frames = [noise(), noise().transpose(Image.Transpose.ROTATE_180)]
    for kind in ("GIF", "WEBP", "PNG"):
        error = failure(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert (error.status, error.code) == (400, "animated_image")


def test_bombs_are_413_before_decoding() -> None:
    bomb = encoded(Image.new("1", (8000, 5000)))
    assert len(bomb) < 10_000
    error = failure(bomb)
    assert (error.status, error.code) == (413, "image_too_large")
    assert "8000 x 5000" in error.message
    assert failure(encoded(noise(), "PNG"), ImageLimits(100, 10**6, 4)).status == 413


@pytest.mark.parametrize("size", [(1, 1), (3, 100), (100, 3)])
def test_tiny_images_are_400(size: tuple[int, int]) -> None:
    error = failure(encoded(Image.new("RGB", size)))
    assert (error.status, error.code) == (400, "image_too_small")
    assert "at least 4" in error.message


def test_data_urls() -> None:
    assert bytes_of_data_url("data:image/png;base64," + base64.b64encode(b"abc").decode(), LIMITS, "image") == b"abc"


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        ("https://example.com/cat.png", 400, "remote_image_disabled"),
        ("file:///etc/passwd", 400, "remote_image_disabled"),
        ("", 400, "remote_image_disabled"),
        ("data:image/png,abc", 400, "invalid_data_url"),
        ("data:image/png;base64", 400, "invalid_data_url"),
        ("data:image/png;base64,@@@@", 400, "invalid_base64"),
        ("data:image/png;base64,abc", 400, "invalid_base64"),
        ("data:image/png;base64,YW Jj", 400, "invalid_base64"),
        ("data:image/png;base64,ÿÿÿÿ", 400, "invalid_base64"),
        ("data:image/png;base64," + "A" * 2_000_000, 413, "image_too_large"),
    ],
)
def test_bad_urls(url: str, status: int, code: str) -> None:
    with pytest.raises(ApiError) as caught:
        bytes_of_data_url(url, LIMITS, "messages.0.content.0.image_url.url")
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.param == "messages.0.content.0.image_url.url"
    assert "etc/passwd" not in caught.value.message
