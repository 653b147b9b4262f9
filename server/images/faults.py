"""What can be wrong with an image. The decoder process says it in a number, never in words of its own."""

from __future__ import annotations

import enum


class Fault(enum.IntEnum):
    """Why an image was not decoded. The values travel between processes; 0 means that there is no fault."""

    TOO_MANY_BYTES = 1
    NOT_AN_IMAGE = 2
    TOO_MANY_PIXELS = 3
    TOO_SMALL = 4
    ANIMATED = 5
    DAMAGED = 6
    TOO_COMPRESSED = 7
    TOO_COMPLEX = 8
    TOO_SLOW = 9


class ImageFaultError(Exception):
    """An image cannot be decoded.

    Args:
        fault: Why.
        width: Its width in pixels, where that is known.
        height: Its height, likewise.
    """

    def __init__(self, fault: Fault, width: int = 0, height: int = 0) -> None:
        super().__init__(fault, width, height)
        self.fault = fault
        self.width = width
        self.height = height

    def __str__(self) -> str:
        return self.fault.name.lower()
