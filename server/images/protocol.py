"""What gateway and decoder process say to each other over a socket: lengths, numbers and raw pixels.

No pickle or any other format that could run code: the decoder process reads what strangers sent, and is not trusted.

    request: largest bytes, pixels and smallest side allowed, length of the file, the file
    reply:   fault (0 for none), width, height, and if there is none, height * width * 3 bytes of RGB
"""

from __future__ import annotations

import socket
import struct
import time

REQUEST = struct.Struct(">QQIQ")
REPLY = struct.Struct(">BII")
READY = b"ready"


def receive_into(connection: socket.socket, view: memoryview, deadline: float | None = None) -> bool:
    """Fills ``view``.

    Args:
        connection: A stream socket.
        view: Bytes to fill.
        deadline: Of :func:`time.monotonic`; None waits for ever.

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
