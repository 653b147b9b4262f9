"""Picture files to RGB pixels, the same way for the gateway, the command line and the replay of receipts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Decodes an opened picture.

    EXIF rotation is applied, 16-bit grey is scaled, transparency goes onto white, every mode becomes RGB.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16-bit grey: Pillow would clip it, not scale it
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in upright.getbands() or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.asarray(upright.convert("RGB"), dtype=np.uint8)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Reads a picture file of a person who trusts it.

    Raises:
        OSError: It cannot be read as a picture.
    """
    with Image.open(path) as image:
        return upright_rgb(image)


def digest(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 of an image's size and pixels, as ``sha256:<hex>``: the same for every lossless file of the image."""
    found = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    found.update(np.ascontiguousarray(pixels).data)
    return f"sha256:{found.hexdigest()}"
