"""The decoder process: reads files from a socket, writes pixels back, and may do nothing else.

It starts with an empty environment, hence without keys, and gives up, before it reads the first file, all that decoding
does not need: new files, sockets and processes, core dumps (they would hold images), and memory without end.
"""

from __future__ import annotations

import io
import os
import resource
import socket
import sys
from pathlib import Path

from PIL import Image, ImageCms

from server.images.decode import FORMATS, decode_image
from server.images.faults import ImageFaultError
from server.images.limits import ImageLimits
from server.images.protocol import READY, REPLY, REQUEST, receive_into

# Copies of the picture that may exist at once, in bytes a pixel: rotation, profile, transparency, the result.
_BYTES_PER_PIXEL = 40
_SPARE_BYTES = 128 * 2**20


def main(descriptor: int) -> None:
    """Serves until the gateway closes the socket, whose file descriptor this is."""
    connection = socket.socket(fileno=descriptor)
    _warm_up()
    used = _give_up_rights()
    connection.sendall(READY)
    header = bytearray(REQUEST.size)
    while receive_into(connection, memoryview(header)):
        *numbers, length = REQUEST.unpack(header)
        limits = ImageLimits(*numbers)
        _limit_memory(used, limits)
        data = bytearray(length)
        if not receive_into(connection, memoryview(data)):
            return
        _answer(connection, bytes(data), limits)
        del data


def _answer(connection: socket.socket, data: bytes, limits: ImageLimits) -> None:
    try:
        pixels = decode_image(data, limits)
    except ImageFaultError as error:
        connection.sendall(REPLY.pack(error.fault, error.width, error.height))
        return
    height, width, _ = pixels.shape
    connection.sendall(REPLY.pack(0, width, height))
    connection.sendall(pixels.reshape(-1).data)


def _warm_up() -> None:
    """Makes Pillow load what it loads late, while files may still be opened."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, name, **({} if name == "BMP" else {"icc_profile": profile}))
        decode_image(file.getvalue(), ImageLimits(2**20, 2**20, 1))


def _give_up_rights() -> int | None:
    """Returns the bytes of address space that are in use now, None where that is not known."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)  # a decoder's complaint may quote the file
    os.close(sink)
    memory = Path("/proc/self/statm")
    used = int(memory.read_text().split()[0]) * resource.getpagesize() if memory.exists() else None
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(what, (0, 0))
    return used


def _limit_memory(used: int | None, limits: ImageLimits) -> None:
    """Leaves room for one image; elsewhere than on Linux the system does not keep such a limit."""
    if used is not None:
        most = used + _SPARE_BYTES + 3 * limits.max_bytes + _BYTES_PER_PIXEL * limits.max_pixels
        _, inherited = resource.getrlimit(resource.RLIMIT_AS)  # nobody may raise it
        if inherited != resource.RLIM_INFINITY:
            most = min(most, inherited)
        resource.setrlimit(resource.RLIMIT_AS, (most, inherited))


if __name__ == "__main__":
    main(int(sys.argv[1]))
