"""The binary protocol between gateway and decoder process: numbers and raw pixels over a socket.

It does not use pickle or any other format that could run code, since the decoder process is not trusted.

    request: max_bytes, max_pixels, min_side, length of the file, the file
    reply:   fault (0 for none), width, height, and without a fault height * width * 3 bytes of RGB
"""

from __future__ import annotations

import socket
import struct
import time

REQUEST = struct.Struct(">QQIQ")
REPLY = struct.Struct(">BII")
READY = b"ready"


def receive_into(connection: socket.socket, view: memoryview, deadline: float | None = None) -> bool:
    """Receives bytes until ``view`` is full.

    Args:
        connection: A stream socket.
        view: Bytes to fill.
        deadline: On the clock of :func:`time.monotonic`; None for no limit.

    Returns:
        False if the other side closed the connection first.

    Raises:
        TimeoutError: The deadline has passed.
    """
    while view:
        if deadline is not None:
            connection.settimeout(max(deadline - time.monotonic(), 1e-3))
        count = connection.recv_into(view)
        if count == 0:
            return False
        view = view[count:]
    return True
