"""Decodes one untrusted file to RGB pixels, after checking all limits on the undecoded file."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

# Plugins of the supported formats; MPO is Pillow's name for a JPEG with further pictures after the first one.
# Without these imports Pillow would import all of its decoders when it first opens a WebP.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401 (EXIF is TIFF inside; as a format it is not read)
    WebPImagePlugin,  # noqa: F401
)

from fs_runtime.preprocessing.pictures import upright_rgb
from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Pillow's own limit would only warn; _check_size raises before any pixel is decoded.
Image.MAX_IMAGE_PIXELS = None

# Against decompression bombs: photographs have 2 to 50 pixels per byte, scanned pages some hundred, and deflate reaches
# at most 1032 grey pixels per byte. Small images are exempt, since they may have a single colour.
MAX_PIXELS_PER_BYTE = 2000
_ALWAYS_ALLOWED_PIXELS = 4_000_000

# The longest side of a JPEG. Resizing longer sides would take too much memory.
MAX_SIDE = 65_535

# A scan of ten bytes makes the decoder process the whole image again. Encoders of progressive JPEGs write about ten.
MAX_JPEG_SCANS = 100
_JPEG, _START_OF_SCAN = b"\xff\xd8", b"\xff\xda"


def decode_image(data: bytes, limits: ImageLimits) -> NDArray[np.uint8]:
    """Decodes one still image.

    Args:
        data: File contents: PNG, JPEG, WebP, GIF or BMP, detected from the bytes.
        limits: Size limits.

    Returns:
        ``(H, W, 3)`` uint8 sRGB, rotated upright, with transparency rendered on white.

    Raises:
        ImageFaultError: It is not such an image, or beyond a limit.
    """
    if len(data) > limits.max_bytes:
        raise ImageFaultError(Fault.TOO_MANY_BYTES)
    if data.startswith(_JPEG) and data.count(_START_OF_SCAN) > MAX_JPEG_SCANS:
        raise ImageFaultError(Fault.TOO_COMPLEX)
    if (canvas := _webp_canvas(data)) is not None:
        _check_size(*canvas, data, limits)  # before opening: Pillow allocates the canvas on open
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise ImageFaultError(Fault.TOO_COMPLEX) from None
    except Exception:  # Pillow's decoders raise exceptions of all kinds
        raise ImageFaultError(Fault.NOT_AN_IMAGE) from None
    with image:
        width, height = image.size
        _check_size(width, height, data, limits)
        # Phones write photographs with a depth or brightness map as MPO; the first picture is the photograph.
        try:
            animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        except Exception:
            raise ImageFaultError(Fault.DAMAGED, width, height) from None
        if animated:
            raise ImageFaultError(Fault.ANIMATED, width, height)
        try:
            pixels = upright_rgb(image)
        except MemoryError:
            raise ImageFaultError(Fault.TOO_COMPLEX, width, height) from None
        except Exception:
            raise ImageFaultError(Fault.DAMAGED, width, height) from None
    if pixels.shape[0] * pixels.shape[1] > limits.max_pixels:  # a file that says two sizes
        raise ImageFaultError(Fault.DAMAGED, width, height)
    return pixels


def _check_size(width: int, height: int, data: bytes, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels or max(width, height) > MAX_SIDE:
        raise ImageFaultError(Fault.TOO_MANY_PIXELS, width, height)
    if width * height > max(_ALWAYS_ALLOWED_PIXELS, MAX_PIXELS_PER_BYTE * len(data)):
        raise ImageFaultError(Fault.TOO_COMPRESSED, width, height)
    if min(width, height) < limits.min_side:
        raise ImageFaultError(Fault.TOO_SMALL, width, height)


def _webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Reads width and height from a WebP header (RFC 9649 section 2); None if the header is absent or incomplete."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if data[12:16] == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None
