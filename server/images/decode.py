"""One untrusted file to RGB pixels. Every limit is checked before pixels are decoded."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

# The formats that are read, MPO because that is what Pillow calls a JPEG with more pictures behind the first one.
# Imported here, since Pillow would import all of its decoders when it first meets a WebP.
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
# Our own limit is checked before any pixel is decoded; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None

# A file this much smaller than its picture is nearly always made to cost: deflate reaches 1032 grey pixels a byte,
# photographs 2 to 50, scanned pages some hundred. Small pictures may be of one colour.
MAX_PIXELS_PER_BYTE = 2000
_ALWAYS_ALLOWED_PIXELS = 4_000_000

# What a JPEG can have. The resize of a longer side would take memory that no picture is worth.
MAX_SIDE = 65_535

# Each scan of a progressive JPEG goes over the whole picture, and an empty one has ten bytes. Encoders make about ten.
MAX_JPEG_SCANS = 100
_JPEG, _START_OF_SCAN = b"\xff\xd8", b"\xff\xda"


def decode_image(data: bytes, limits: ImageLimits) -> NDArray[np.uint8]:
    """Decodes one still image.

    Args:
        data: File contents: PNG, JPEG, WebP, GIF or BMP, as its own bytes say, not its name or media type.
        limits: Size limits.

    Returns:
        ``(H, W, 3)`` uint8 sRGB, upright, transparency on white.

    Raises:
        ImageFaultError: It is not such an image, or beyond a limit.
    """
    if len(data) > limits.max_bytes:
        raise ImageFaultError(Fault.TOO_MANY_BYTES)
    if data.startswith(_JPEG) and data.count(_START_OF_SCAN) > MAX_JPEG_SCANS:
        raise ImageFaultError(Fault.TOO_COMPLEX)
    if (canvas := _webp_canvas(data)) is not None:
        _check_size(*canvas, data, limits)  # Pillow makes room for the canvas when it opens the file
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise ImageFaultError(Fault.TOO_COMPLEX) from None
    except Exception:  # decoders raise what they like
        raise ImageFaultError(Fault.NOT_AN_IMAGE) from None
    with image:
        width, height = image.size
        _check_size(width, height, data, limits)
        # Phones write an MPO for a photograph with a depth or brightness map behind it: its first picture counts.
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
    """Width and height from a WebP's header (RFC 9649 section 2), None if it is none or has not all of it."""
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
