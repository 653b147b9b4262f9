"""Untrusted image bytes to RGB pixels."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fs_runtime.pictures import upright_rgb
from server.errors import ApiError, invalid
from server.settings import Settings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Our own limit is checked before any pixel is decoded; Pillow's would only warn.
Image.MAX_IMAGE_PIXELS = None


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may be."""

    max_bytes: int
    max_pixels: int
    min_side: int

    @classmethod
    def from_settings(cls, settings: Settings) -> ImageLimits:
        """The operator's limits."""
        return cls(settings.max_image_bytes, settings.max_image_pixels, settings.min_image_side)


def bytes_of_data_url(url: str, limits: ImageLimits, param: str) -> bytes:
    """Decodes a ``data:image/…;base64,…`` URL.

    Raises:
        ApiError: Not a data URL, bad base64 or too large.
    """
    if not url.startswith("data:"):
        raise invalid(
            "this is not a data URL, and images elsewhere are not fetched; send the image as data:image/png;base64,…",
            param,
            "remote_image_disabled",
        )
    header, comma, payload = url.partition(",")
    if not comma or not header.endswith(";base64"):
        raise invalid("the data URL must have the form data:image/png;base64,…", param, "invalid_data_url")
    if len(payload) * 3 // 4 > limits.max_bytes + 3:
        raise _too_large(len(payload) * 3 // 4, limits, param)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise invalid(
            "the data URL is not valid base64; encode the file's bytes without line breaks", param, "invalid_base64"
        ) from None


def decode_image(data: bytes, limits: ImageLimits, param: str) -> NDArray[np.uint8]:
    """Decodes one still image.

    Args:
        data: File contents: PNG, JPEG, WebP, GIF or BMP.
        limits: Size limits, checked before pixels are decoded.
        param: Where the image was in the request, for error messages.

    Returns:
        ``(H, W, 3)`` uint8 RGB, upright, transparency on white.

    Raises:
        ApiError: 413 too large, 415 not an image of a known format, 400 damaged, animated or too small.
    """
    if len(data) > limits.max_bytes:
        raise _too_large(len(data), limits, param)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception:
        raise ApiError(
            415, f"{param} is not an image in one of the formats {', '.join(FORMATS)}", code="not_an_image", param=param
        ) from None
    with image:
        width, height = image.size
        if width * height > limits.max_pixels:
            raise ApiError(
                413,
                f"{param} has {width} x {height} pixels; at most {limits.max_pixels} are allowed: scale it down",
                code="image_too_large",
                param=param,
            )
        if min(width, height) < limits.min_side:
            raise invalid(
                f"{param} has {width} x {height} pixels; each side must have at least {limits.min_side}",
                param,
                "image_too_small",
            )
        if getattr(image, "is_animated", False):
            raise invalid(f"{param} is animated; send one frame as a still image", param, "animated_image")
        try:
            return upright_rgb(image)
        except Exception:
            raise invalid(f"{param} is damaged or cut off; send the whole file", param, "invalid_image") from None


def _too_large(size: int, limits: ImageLimits, param: str) -> ApiError:
    return ApiError(
        413,
        f"{param} has {size} bytes; at most {limits.max_bytes} are allowed: scale it down or compress it",
        code="image_too_large",
        param=param,
    )
