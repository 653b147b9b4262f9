"""Image files, ordinary and malicious, made byte by byte where no encoder would make them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 20, width: int = 30, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, pixels: bytes, depth: int = 8, colour: int = 2, more: bytes = b"") -> bytes:
    """A PNG of any declared size around any compressed data."""
    header = png_chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """``count`` zero bytes, deflated; about a thousandth of that."""
    squeeze = zlib.compressobj(9)
    piece = bytes(2**20)
    parts = [squeeze.compress(piece) for _ in range(count // len(piece))]
    return b"".join([*parts, squeeze.compress(bytes(count % len(piece))), squeeze.flush()])


def jpeg_of_size(width: int, height: int) -> bytes:
    """A small JPEG whose header says another size."""
    data = bytearray(encoded(noise(), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">2H", height, width)
    return bytes(data)


def jpeg_of_many_scans(scans: int, side: int = 2000) -> bytes:
    """A progressive JPEG whose last scan, which is nearly empty, comes again and again."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:last] + data[last:end] * scans + data[end:]


def webp_of_canvas(width: int, height: int) -> bytes:
    """A WebP whose extended header says another canvas."""
    data = bytearray(encoded(noise(mode="RGB").convert("RGBA"), "WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def webp_of_size(width: int, height: int) -> bytes:
    """A lossless WebP whose header says another size."""
    data = bytearray(encoded(noise(), "WEBP", lossless=True))
    assert data[12:16] == b"VP8L"
    rest = int.from_bytes(data[21:25], "little") >> 28 << 28
    data[21:25] = (rest | height - 1 << 14 | width - 1).to_bytes(4, "little")
    return bytes(data)


def bmp_of_size(width: int, height: int) -> bytes:
    """A small BMP whose header says another size."""
    data = bytearray(encoded(noise(), "BMP"))
    data[18:26] = struct.pack("<2i", width, height)
    return bytes(data)


def gif_of_frames(frames: int) -> bytes:
    """A GIF that repeats its first frame."""
    data = encoded(Image.new("P", (64, 64)), "GIF")
    start = data.index(b",\0\0\0\0")
    return data[:start] + data[start:-1] * frames + b";"


def swapped_profile() -> bytes:
    """An ICC profile whose red is sRGB's blue, and the other way round: a conversion cannot be overlooked."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {
        bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(struct.unpack(">I", data[128:132])[0])
    }
    red, blue = tags[b"rXYZ"] + 4, tags[b"bXYZ"] + 4
    data[red : red + 8], data[blue : blue + 8] = data[blue : blue + 8], data[red : red + 8]
    return bytes(data)
