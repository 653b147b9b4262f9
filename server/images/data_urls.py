"""Decodes images that are sent inline: ``data:image/…;base64,…``."""

from __future__ import annotations

import binascii

from server.errors import invalid
from server.images.faults import Fault, ImageFaultError
from server.images.limits import ImageLimits


def decode_data_url(url: str, limits: ImageLimits, param: str) -> bytes:
    """Decodes a data URL. The media type is ignored, since the image decoder detects the format from the bytes.

    Raises:
        ApiError: It is not a base64 data URL.
        ImageFaultError: The file has too many bytes.
    """
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise invalid("the data URL must have the form data:image/png;base64,…", param, "invalid_data_url")
    if len(payload) * 3 // 4 > limits.max_bytes + 3:
        raise ImageFaultError(Fault.TOO_MANY_BYTES)
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError:
        raise invalid(
            "the data URL is not valid base64; encode the file's bytes in the standard alphabet (with + and /), padded "
            "with =, without line breaks and % escapes",
            param,
            "invalid_base64",
        ) from None
