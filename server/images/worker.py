"""The sandboxed decoder process: reads files from a socket and writes pixels back.

Its environment is empty, so it holds no keys. Before it reads the first file, it drops everything that decoding does
not need: opening files and sockets, starting processes, core dumps (which would hold images) and unlimited memory.
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
    """Serves on the socket with this file descriptor until the gateway closes it."""
    connection = socket.socket(fileno=descriptor)
    _warm_up()
    used = _drop_privileges()
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
    """Makes Pillow load its lazy modules while files can still be opened."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name in FORMATS:
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, name, **({} if name == "BMP" else {"icc_profile": profile}))
        decode_image(file.getvalue(), ImageLimits(2**20, 2**20, 1))


def _drop_privileges() -> int | None:
    """Sets resource limits and silences standard error. Returns the address space in use, in bytes, if known."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)  # error messages of decoders may quote the file
    os.close(sink)
    memory = Path("/proc/self/statm")
    used = int(memory.read_text().split()[0]) * resource.getpagesize() if memory.exists() else None
    for what in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(what, (0, 0))
    return used


def _limit_memory(used: int | None, limits: ImageLimits) -> None:
    """Limits memory to what one image needs. Linux only: other systems do not enforce this limit."""
    if used is not None:
        most = used + _SPARE_BYTES + 3 * limits.max_bytes + _BYTES_PER_PIXEL * limits.max_pixels
        _, inherited = resource.getrlimit(resource.RLIMIT_AS)  # the hard limit, which cannot be raised
        if inherited != resource.RLIM_INFINITY:
            most = min(most, inherited)
        resource.setrlimit(resource.RLIMIT_AS, (most, inherited))


if __name__ == "__main__":
    main(int(sys.argv[1]))
