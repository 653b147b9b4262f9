"""Decodes picture files to RGB pixels, in the same way for the gateway, the command line and the replay of receipts."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

_Turn = Image.Transpose
# The transpose that undoes each value of EXIF's Orientation.
_UPRIGHT = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}
# Colour space that an ICC profile must have, by the mode of the pixels.
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
# Profiles of printers have a few MB; the field itself could be as large as the file.
_MAX_PROFILE_BYTES = 4 * 2**20


def upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Decodes an opened picture.

    EXIF rotation is applied, 16-bit grey is scaled, colours of an embedded ICC profile become sRGB, transparency goes
    onto white, every mode becomes RGB. EXIF data or a profile that cannot be read counts as absent.

    Returns:
        ``(H, W, 3)`` uint8.
    """
    image.load()
    profile, transparency = image.info.get("icc_profile"), image.info.get("transparency")
    turn = _UPRIGHT.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):  # 16-bit grey: Pillow would clip it, not scale it
        upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    alpha = None
    if "A" in upright.getbands() or transparency is not None:
        layer = upright.convert("RGBA")
        alpha = layer.getchannel("A")
        upright = upright.convert("L") if upright.mode in ("1", "L", "LA") else layer.convert("RGB")
    colours = _srgb(_plain(upright), profile)
    if alpha is not None:
        layer = colours.copy()
        layer.putalpha(alpha)
        colours = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return np.asarray(colours, dtype=np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data does not affect the pixels
        return 1
    return value if isinstance(value, int) else 1


def _plain(image: Image.Image) -> Image.Image:
    """The image in one of the modes that ICC profiles support."""
    if image.mode in _PROFILE_SPACES:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB in sRGB, converted from the embedded profile if it is one for this mode."""
    if profile and len(profile) <= _MAX_PROFILE_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == _PROFILE_SPACES[image.mode]:
                converted = ImageCms.profileToProfile(
                    image, source, ImageCms.createProfile("sRGB"), ImageCms.Intent.PERCEPTUAL, "RGB"
                )
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # as in browsers: without a readable profile, the values are taken as sRGB
    return image.convert("RGB")


def read_picture(path: Path) -> NDArray[np.uint8]:
    """Reads a picture file that the caller trusts.

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
